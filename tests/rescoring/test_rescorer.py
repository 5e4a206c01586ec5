import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import ida_jax
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.rescoring import gallery as gallery_module
from ida_jax.rescoring import pairs
from ida_jax.rescoring.method_table import METHODS, is_dao, scoring_methods
from ida_jax.rescoring.methods import cohort_notes
from ida_jax.rescoring.quality_fit import QualityFit
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.tables.score_origin import differences

K, TAU, TOP_N = 4, 2.0, 12
FACES = reference.unit((30, 16), 1, clusters=5)
ANCHORS = reference.unit((60, 16), 0, clusters=5)
# As a model gives them, for the methods that take the norm too.
RAW = FACES * np.random.default_rng(7).uniform(5, 20, (30, 1)).astype(np.float32)
PAIRS = np.random.default_rng(0).integers(30, size=(25, 2))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    rng = np.random.default_rng(2)
    params = {
        "hidden_fc": {"kernel": rng.normal(size=(16, 8)), "bias": rng.normal(size=8)},
        "output_fc": {"kernel": rng.normal(size=(8, 1)), "bias": rng.normal(size=1)},
    }
    params = jax.tree.map(np.float32, params)
    ssr = ida_jax.SSRModule(params, "log", -1.5, 0.2, 1e-3, K, TAU)
    path = tmp_path_factory.mktemp("ssr") / "ssr.safetensors"
    ssr.save(path)
    csn = ida_jax.fit_csn(FACES, np.arange(30) // 3, ida_jax.AnchorSet(ANCHORS), top_n=TOP_N)
    made = {m: {} for m in scoring_methods()} | {"as_norm": {"top_n": TOP_N}, "csn": {"csn": csn}}
    fit = ida_jax.DaoFit(TAU, 1.5, 3.0, 0.1, width=16, anchors=60)
    made["ida_r_fitted"] = {"dao_fit": fit, "k": None, "tau": None}
    quality = QualityFit(
        30.0, 12.0, 0.2, -1.0, 0.3, 0.1, 1.8, 2.9, (2.0, 2.5), K, 16, 60,
        ida_jax.AnchorSet.from_embeddings(ANCHORS).sketch,
    )  # fmt: skip
    made["ida_q"] = {"quality_fit": quality, "k": None, "tau": None}
    made["ida_r_fallback"] = {"weight": 0.4}
    made["ida_q_label_free"] = {"k": None, "tau": None}
    scorers = {
        method: Rescorer(ANCHORS, method=method, **({"k": K, "tau": TAU} | options))
        for method, options in made.items()
        if method != "ida_l"
    }
    return scorers | {"ida_l": Rescorer.from_ssr(path)}


def _expected(i, j, method, cohort):
    """The scores that need no training, from embeddings alone, in float64."""
    f1, f2, cohort = (x.astype(np.float64) for x in (FACES[i], FACES[j], cohort))
    s1, s2 = (np.sort(cohort @ f)[::-1] for f in (f1, f2))
    if method == "ida_r":
        return TAU * (f1 @ f2) + np.log(
            reference.density(s1[:K], TAU) + reference.density(s2[:K], TAU)
        )
    if method == "as_norm":
        s1, s2 = s1[:TOP_N], s2[:TOP_N]
    z, t = ((f1 @ f2 - s.mean()) / s.std() for s in (s1, s2))
    return {"cosine": f1 @ f2, "z_norm": z, "t_norm": t}.get(method, (z + t) / 2)


@pytest.mark.parametrize("method", ["cosine", "ida_r", "z_norm", "t_norm", "s_norm", "as_norm"])
def test_score_pairs_of_embeddings_of_any_norm(scorers, method):
    norms = np.random.default_rng(3).uniform(0.1, 50, (30, 1)).astype(np.float32)
    got = scorers[method].score_pairs(norms * FACES, PAIRS)
    expected = [_expected(i, j, method, ANCHORS) for i, j in PAIRS]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", scoring_methods())
def test_pairs_of_rows_and_pairs_of_a_list_agree(scorers, method):
    scorer = scorers[method]
    whole = scorer.score_pairs(RAW, PAIRS)
    factor = 1 if METHODS[method].log_norm else 3
    rows = scorer.score(factor * RAW[PAIRS[:, 0]], RAW[PAIRS[:, 1]])
    np.testing.assert_allclose(rows, whole, rtol=2e-5, atol=2e-5)
    one_by_one = [scorer.score(RAW[[i]], RAW[[j]])[0] for i, j in PAIRS[:5]]
    np.testing.assert_allclose(one_by_one, whole[:5], rtol=2e-5, atol=2e-5)
    assert scorer.score(RAW[:0], RAW[:0]).shape == (0,)


@pytest.mark.parametrize("method", scoring_methods())
def test_identify_ranks_as_the_pairs_scores(scorers, method):
    scorer = scorers[method]
    gallery = scorer.gallery(RAW[:20])
    got = scorer.identify(RAW[20:], gallery, top=5)
    pairs = np.stack(np.meshgrid(np.arange(20), np.arange(20, 30)), axis=-1).reshape(-1, 2)
    scores = scorer.score_pairs(RAW, pairs).reshape(10, 20)  # [probe, gallery]
    np.testing.assert_allclose(got.scores, -np.sort(-scores, axis=1)[:, :5], rtol=1e-4, atol=1e-4)
    again = scorer.identify(RAW[20:], RAW[:20], top=5)
    np.testing.assert_array_equal(got.rows, again.rows)


_OTHER = {"k": K + 1, "tau": TAU + 1, "weight": 0.5, "top_n": TOP_N + 1, "ddof": 1}


@pytest.mark.parametrize("setting", _OTHER)
@pytest.mark.parametrize("method", scoring_methods())
def test_scores_depend_on_the_settings_that_the_method_names(scorers, method, setting):
    """The origin of scores holds these, and a calibration refuses others."""
    scorer = scorers[method]
    assert set(scorer.origin().settings) == set(METHODS[method].settings)
    if METHODS[method].own_constants and setting in ("k", "tau"):
        return  # they come from the artefact, of which the origin has the fingerprint
    given = {need: getattr(scorer, need) for need in METHODS[method].needs if need != "anchors"}
    given |= {"top_n": scorer.top_n, "ddof": scorer.ddof, "k": scorer.k, "tau": scorer.tau}
    given["weight"] = scorer.weight
    if METHODS[method].own_constants:
        del given["k"], given["tau"]
    other = Rescorer(scorer.anchors, method=method, **(given | {setting: _OTHER[setting]}))
    scores = [each.score_pairs(RAW, PAIRS) for each in (scorer, other)]
    assert (setting in METHODS[method].settings) != np.allclose(*scores, rtol=1e-6, atol=1e-6)
    differing = differences(scorer.origin(), other.origin())
    assert bool(differing) == (setting in METHODS[method].settings)


def test_the_origin_names_what_was_trained(scorers):
    whole = AnchorSet.from_embeddings(ANCHORS)
    for method, scorer in scorers.items():
        origin, needs = scorer.origin(model="abc"), set(METHODS[method].needs)
        assert (origin.method, origin.model, origin.scale) == (method, "abc", "log")
        assert origin.anchors == (whole.sketch if "anchors" in needs else "")
        assert origin.anchor_count == (60 if "anchors" in needs else 0)
        assert set(origin.artefacts) == needs - {"anchors"}
    module = scorers["ida_l"].ssr
    retrained = dataclasses.replace(
        module, params=jax.tree.map(lambda x: x * np.float32(2), module.params)
    )
    origin = Rescorer(None, method="ida_l", ssr=retrained).origin()
    (said,) = differences(scorers["ida_l"].origin(), origin)
    assert said.startswith("ssr ")


def test_an_ssr_module_of_other_anchors_is_noted(scorers):
    module = scorers["ida_l"].ssr
    for sketch, noted in (("", 0), (AnchorSet.from_embeddings(ANCHORS).sketch, 0), ("0" * 16, 1)):
        ssr = dataclasses.replace(module, anchors_sketch=sketch)
        notes = cohort_notes([Rescorer(ANCHORS, method="ida_l", ssr=ssr)], None)
        assert len(notes) == noted
        assert all("trained with other anchors than these" in note for note in notes)
        assert cohort_notes([Rescorer(None, method="ida_l", ssr=ssr)], None) == ()


def test_a_fit_that_does_not_know_its_anchors_is_noted(scorers):
    (note,) = cohort_notes([scorers["ida_r_fitted"]], None)
    assert note.startswith("ida_r_fitted: --dao_fit does not say which anchors")
    assert cohort_notes([scorers["csn"]], None) == ()


@pytest.mark.parametrize("method", ["ida_r", "ida_r_fallback", "ida_l"])
def test_densities(scorers, method):
    scorer = scorers[method]
    np.testing.assert_allclose(
        scorer.densities(FACES), np.exp(scorer.log_densities(5 * FACES)), rtol=1e-5
    )


def test_searched_densities_are_the_formula(scorers):
    expected = [reference.density(s, TAU) for s in reference.top_k(FACES, ANCHORS, K)]
    np.testing.assert_allclose(scorers["ida_r"].densities(FACES), expected, rtol=1e-5)


def test_the_weight_goes_from_the_cosine_to_ida_r(scorers):
    for weight, other in ((0, "cosine"), (1, "ida_r")):
        fallen = Rescorer(ANCHORS, k=K, tau=TAU, method="ida_r_fallback", weight=weight)
        difference = fallen.score_pairs(RAW, PAIRS)
        difference -= (1 if weight else TAU) * scorers[other].score_pairs(RAW, PAIRS)
        np.testing.assert_allclose(difference, np.mean(difference), atol=1e-5)
    (note,) = cohort_notes([scorers["ida_r_fallback"]], None)
    assert note == "ida_r_fallback: log F has the weight 0.4 (--weight)"
    fallen = Rescorer(ANCHORS, method="ida_r_fallback", weight=0)
    assert "it is the cosine" in cohort_notes([fallen], None)[0]
    with pytest.raises(UserError, match="ida_r_fallback needs a weight of log F"):
        Rescorer(ANCHORS, method="ida_r_fallback")
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"weight is .*: expected 0"):
            Rescorer(ANCHORS, method="ida_r_fallback", weight=weight)


def test_the_operators_work_inside_a_users_own_jit(scorers):
    @jax.jit
    def score(f1, f2, anchors):
        def log_f(f):
            return ida_jax.log_density(jax.lax.top_k(f @ anchors.T, K)[0], tau=TAU)

        return ida_jax.log_dao(jnp.sum(f1 * f2, axis=-1), log_f(f1), log_f(f2), tau=TAU)

    first, second = FACES[PAIRS[:, 0]], FACES[PAIRS[:, 1]]
    expected = scorers["ida_r"].score(first, second)
    np.testing.assert_allclose(score(first, second, ANCHORS), expected, atol=1e-5)


def test_the_defaults_are_the_anchor_sets_own():
    anchors = ida_jax.AnchorSet.from_embeddings(ANCHORS, k=7, tau=3.0)
    scorer = Rescorer(anchors)
    assert (scorer.k, scorer.tau, scorer.method) == (7, 3.0, "ida_r")
    assert (Rescorer(anchors, k=2).k, Rescorer(ANCHORS).k) == (2, 10)


@pytest.mark.parametrize(
    ("count", "labels", "expected"),
    [(301, None, 300), (300, None, 300), (60, None, 60), (60, np.arange(60) // 3, 57)],
)
def test_the_usual_cohort_follows_the_anchors(count, labels, expected):
    """Of labelled anchors a face's own identity, up to three here, may be left out."""
    rng = np.random.default_rng(5)
    anchors = ida_jax.AnchorSet.from_embeddings(
        rng.normal(size=(count, 8)).astype(np.float32), labels=labels
    )
    faces = rng.normal(size=(6, 8)).astype(np.float32)
    usual = Rescorer(anchors, method="as_norm")
    assert usual.top_n == expected
    asked = Rescorer(anchors, method="as_norm", top_n=expected)
    np.testing.assert_array_equal(
        usual.score(faces[:3], faces[3:]), asked.score(faces[:3], faces[3:])
    )
    assert cohort_notes([asked], expected) == ()
    notes = cohort_notes([usual, Rescorer(anchors)], None)
    assert bool(notes) == (expected < 300)
    assert all(f"top_n is {expected}" in note for note in notes)


@pytest.mark.parametrize(
    ("method", "on_cpu"),
    [(m, True) for m in ("cosine", "ida_r", "ida_l", "as_norm", "ida_q")] + [("ida_r", False)],
)
def test_a_server_compiles_nothing_once_it_is_warm(scorers, method, on_cpu, caplog, monkeypatch):
    """And eight threads at once get the scores of one; by the programs of other devices, too."""
    monkeypatch.setattr(pairs, "on_cpu", lambda _: on_cpu)
    monkeypatch.setattr(gallery_module, "_on_cpu", lambda _: on_cpu)
    scorer, most = scorers[method], 150
    rows = np.random.default_rng(4).normal(size=(2, most, 16)) * 9
    gallery = scorer.gallery(RAW)
    scorer.warm_up(most=most, gallery=gallery, top=3)

    def answer(count):
        first, second = rows[:, :count]
        densities = scorer.log_densities(first) if is_dao(method) else np.zeros(count)
        return scorer.score(first, second), densities, *scorer.identify(first, gallery, top=3)

    counts = [1, 3, 16, 17, 32, 33, 65, 97, 128, 129, most]
    with jax.log_compiles(), caplog.at_level("WARNING"):
        alone = [answer(count) for count in counts]
    assert not [m for m in caplog.messages if m.startswith("Compiling")]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(answer, counts))
    jax.tree.map(np.testing.assert_array_equal, at_once, alone)


def test_what_cannot_be_warmed_up():
    cosine = Rescorer(None, method="cosine")
    with pytest.raises(UserError, match="cosine has no anchors, whose width would be taken"):
        cosine.warm_up()
    with pytest.raises(UserError, match="most is 20000: expected 1 … 16,384 rows"):
        cosine.warm_up(width=16, most=20000)
    cosine.warm_up(width=16, most=1)


def test_arrays_of_other_kinds():
    """bfloat16, as a network gives it, and lists are converted."""
    halves = jnp.asarray(FACES, jnp.bfloat16)
    widened = np.asarray(halves, np.float32)
    scorer = Rescorer(ANCHORS.tolist(), k=5)
    assert len(scorer.anchors) == len(ANCHORS)
    expected = Rescorer(ANCHORS, k=5)
    np.testing.assert_array_equal(scorer.densities(halves), expected.densities(widened))
    pairs = [[0, 1], [2, 5]]
    np.testing.assert_array_equal(
        scorer.score_pairs(halves, pairs), expected.score_pairs(widened, np.array(pairs))
    )
    np.testing.assert_array_equal(
        scorer.score(FACES[:2].tolist(), FACES[2:4].tolist()), expected.score(FACES[:2], FACES[2:4])
    )
    found = scorer.identify(halves[:3], halves, top=1)
    np.testing.assert_array_equal(found.rows[:, 0], [0, 1, 2])


def test_files_in_place_of_what_they_hold(scorers, tmp_path):
    ida_jax.AnchorSet.from_embeddings(ANCHORS, k=7).save(tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", ANCHORS)
    first, second = FACES[:4], FACES[4:8]
    for path in (tmp_path / "a.safetensors", str(tmp_path / "a.npy")):
        got = Rescorer(path, k=7).score(first, second)
        np.testing.assert_array_equal(got, Rescorer(ANCHORS, k=7).score(first, second))
    scorers["ida_l"].ssr.save(tmp_path / "s.safetensors")
    got = Rescorer(None, method="ida_l", ssr=str(tmp_path / "s.safetensors")).score(first, second)
    np.testing.assert_array_equal(got, scorers["ida_l"].score(first, second))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rescorer("no.safetensors"), "no.safetensors"),
        (lambda: Rescorer(7), r"anchors are int64 \[\]"),
        (lambda: Rescorer([[1.0, 2.0], [3.0]]), "anchors are not an array"),
        (lambda: Rescorer(["a", "b"]), r"anchors are <U1 \[2\]"),
        (
            lambda: Rescorer(ANCHORS, method="ida_l", ssr=ANCHORS),
            "ssr is a ndarray: expected",
        ),
        (lambda: Rescorer(ANCHORS).score("e.npy", FACES), "first faces are 'e.npy'.*read the file"),
        (lambda: Rescorer(ANCHORS).score_pairs("e.npy", [[0, 1]]), "embeddings are 'e.npy'"),
        (lambda: Rescorer(ANCHORS).score_pairs(FACES, "p.npy"), r"pairs are <U5 \[\]"),
        (lambda: Rescorer(ANCHORS).score_pairs(FACES, [[0, 1], [2]]), "pairs are not an array"),
        (lambda: Rescorer(ANCHORS).gallery([FACES[0].tolist(), None]), "gallery are"),
    ],
)
def test_what_is_no_array(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_mistakes(scorers):
    ssr, fit = scorers["ida_l"].ssr, scorers["ida_r_fitted"].dao_fit
    for arguments, message in (
        ({"method": "best"}, "method 'best' is unknown: choose one of cosine, ida_r"),
        ({"method": "as-norm"}, r"method 'as-norm' is unknown: did you mean as_norm\?"),
        ({"anchors": None}, "ida_r needs anchors"),
        ({"k": 61}, r"k = 61 neighbours .* 60 anchors"),
        ({"k": 0}, "k = 0"),
        ({"tau": 0.0}, "tau is 0"),
        ({"method": "as_norm", "top_n": 300}, r"top_n = 300 neighbours .* 60 anchors"),
        ({"method": "ida_l"}, "needs an SSR module"),
        ({"method": "csn"}, "needs its trained classifier"),
        ({"method": "ida_r_fitted"}, "needs its constants"),
        ({"method": "ida_r_fitted", "dao_fit": fit, "k": 5}, "leave them out"),
        ({"method": "ida_r_fitted", "dao_fit": fit, "anchors": ANCHORS[1:]}, "with 60 anchors, 59"),
        ({"method": "ida_l", "ssr": ssr, "k": 5}, r"trained for k = 4 and tau = 2"),
        ({"anchors": np.where(ANCHORS[3] == ANCHORS, np.nan, ANCHORS)}, "anchors: row 3 is"),
    ):
        with pytest.raises(UserError, match=message):
            Rescorer(**({"anchors": ANCHORS} | arguments))
    scorer = scorers["ida_r"]
    with pytest.raises(UserError, match=r"\[3, 16\], the second \[4, 16\]"):
        scorer.score(FACES[:3], FACES[:4])
    with pytest.raises(UserError, match="second faces: row 1 is zero, NaN or infinite"):
        scorer.score(FACES[:2], FACES[:2] * np.float32([[1], [0]]))
    with pytest.raises(UserError, match="15 wide, the anchors' 16"):
        scorer.score_pairs(FACES[:, :15], PAIRS)
    with pytest.raises(UserError, match=r"pair 0 is \(0, 30\)"):
        scorer.score_pairs(FACES, np.array([[0, 30]]))
    with pytest.raises(UserError, match="s_norm has no densities"):
        scorers["s_norm"].densities(FACES)
