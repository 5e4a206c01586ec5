"""IDA-Q: its score, its fit and its file, beside slow float64 transcriptions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reference_quality as slow

import ida_jax
from ida_jax import fit as command
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError, exit_code
from ida_jax.metrics.roc import tar_at_far
from ida_jax.rescore import main as rescore
from ida_jax.rescoring import quality_fit
from ida_jax.rescoring.log_norms import norm_notes
from ida_jax.rescoring.quality_fit import QualityFit, fit_quality, huber_line, tilt
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs.protocol_command import main as evaluate

K = 5


def _people(count, seed):
    """Raw embeddings of three images per person: the poorer an image, the shorter and noisier."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 24))[rng.integers(6, size=count)]
    people = centres + rng.normal(size=(count, 24))
    quality = rng.uniform(0.2, 1.0, (3 * count, 1))
    noise = (1 - 0.8 * quality) * rng.normal(size=(3 * count, 24))
    rows = np.repeat(people, 3, axis=0) + 1.3 * noise
    rows *= 20 * quality / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(count), 3)


EVERYBODY, _ALL = _people(240, 5)
RAW, LABELS = EVERYBODY[:360], _ALL[:360]
UNSEEN = EVERYBODY[360:]
NORMS = np.linalg.norm(RAW.astype(np.float64), axis=1)
UNIT = ida_jax.unit_embeddings(RAW)
ANCHORS = AnchorSet.from_embeddings(RAW[::3], labels=LABELS[::3], fingerprint="abc")


@pytest.fixture(scope="module", autouse=True)
def _few_impostors_are_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_fit, "_ENOUGH_ABOVE", 5)
        yield


@pytest.fixture(scope="module")
def fit():
    return fit_quality(UNIT, NORMS, LABELS, ANCHORS, k=K)


def _fit(**changes):
    made = {
        "rate": 30.0, "density_weight": 12.0, "norm_weight": 0.2, "intercept": -1.0, "slope": 0.3,
        "deviation": 0.1, "lowest": 1.5, "highest": 2.9, "percentiles": (1.8, 2.0, 2.5), "k": K,
        "width": 24, "anchors": 120, "anchors_sketch": "",
    }  # fmt: skip
    return QualityFit(**(made | changes))


def test_the_fit_is_the_transcription(fit):
    some = slice(0, 330)  # 53,955 impostor pairs
    found = fit_quality(UNIT[some], NORMS[some], LABELS[some], ANCHORS, k=K)
    expected = slow.fitted(
        UNIT[some], NORMS[some], LABELS[some], ANCHORS.embeddings, ANCHORS.labels, K
    )
    assert 0 < expected["u"] < expected["T"] / 2  # neither end decides
    np.testing.assert_allclose(found.constants, list(expected.values()), rtol=2e-4)
    log_norms = np.log(NORMS[some])
    np.testing.assert_allclose(
        [found.lowest, found.highest], np.quantile(log_norms, [0.001, 0.999]), rtol=1e-6
    )
    assert len(found.percentiles) == 99
    assert (found.people, found.genuine, found.impostor) == (110, 330, 53955)
    assert found.slope > 0.05  # the poorer an image, the lower its genuine cosines


def test_the_base_form_is_daos_weight():
    base = fit_quality(UNIT, NORMS, LABELS, ANCHORS, k=K, form="base")
    assert (base.density_weight, base.norm_weight) == (base.rate / 2, 0.0)


@pytest.mark.parametrize("method", ["ida_q", "ida_q_label_free"])
def test_scores_pair_by_pair(fit, method):
    options = {"quality_fit": fit} if method == "ida_q" else {}
    scorer = Rescorer(ANCHORS, method=method, **options)
    pairs = np.random.default_rng(0).integers(len(UNSEEN), size=(65, 2))
    unit = UNSEEN / np.linalg.norm(UNSEEN.astype(np.float64), axis=1, keepdims=True)
    k = K if method == "ida_q" else 30
    u = [slow.crowding(face, None, ANCHORS.embeddings, ANCHORS.labels, k) for face in unit]
    log_norms = np.log(np.linalg.norm(UNSEEN.astype(np.float64), axis=1))
    named = dict(zip(("T", "u", "l", "a", "b", "s"), fit.constants, strict=True))
    if method == "ida_q":
        log_norms = np.clip(log_norms, fit.lowest, fit.highest)

    def expected(i, j):
        c = unit[i] @ unit[j]
        faces = u[i], log_norms[i], u[j], log_norms[j]
        return slow.score(c, *faces, named) if method == "ida_q" else slow.label_free(c, *faces)

    want = [expected(i, j) for i, j in pairs]
    np.testing.assert_allclose(scorer.score_pairs(UNSEEN, pairs), want, rtol=2e-4, atol=2e-4)
    apart = scorer.score(UNSEEN[pairs[:, 0]], UNSEEN[pairs[:, 1]])
    np.testing.assert_allclose(apart, want, rtol=2e-4, atol=2e-4)
    best = scorer.identify(UNSEEN[:4], UNSEEN[4:], top=3)
    every = np.array([[expected(i, j) for i in range(4, len(UNSEEN))] for j in range(4)])
    np.testing.assert_allclose(best.scores, -np.sort(-every, axis=1)[:, :3], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("labels", "k"), [(None, 20), (np.arange(20) // 4, 16)])
def test_a_small_set_is_its_support(labels, k):
    """The label-free form takes 30 anchors, or as many as there are beside a face's own people."""
    small = AnchorSet.from_embeddings(RAW[:20], labels=labels)
    assert Rescorer(small, method="ida_q_label_free").neighbours == k


def test_it_gains_where_norms_tell_the_quality(fit):
    faces, _, norms = ida_jax.common.validation.unit_rows(UNSEEN)
    tars = {}
    for method in ("cosine", "ida_r", "ida_q", "ida_q_label_free"):
        options = {"quality_fit": fit} if method == "ida_q" else {}
        terms = Rescorer(ANCHORS, method=method, **options).terms(faces, norms=norms)
        scores = ida_jax.score_all_pairs(faces, LABELS, terms)
        tars[method] = tar_at_far(*scores, [1e-3])[0].tar
    assert tars["ida_q"] > tars["ida_r"]


def test_huber_line_is_not_moved_by_a_few_strangers():
    rng = np.random.default_rng(0)
    x = rng.uniform(4, 6, 500)
    y = -1 + 0.3 * x + 0.05 * rng.normal(size=500)
    y[:10] = -5
    a, b, deviation = huber_line(x, y, weights=np.ones(500))
    assert (a, b) == pytest.approx((-1, 0.3), abs=0.05)
    assert deviation == pytest.approx(0.05, rel=0.15)
    assert huber_line(np.ones(3), np.array([1.0, 1, 1]), weights=np.ones(3)) == (1.0, 0.0, 0.0)


def test_a_tilt_that_is_beyond_its_bounds_is_the_bound():
    values, flat = np.linspace(0, 1, 50), np.zeros(50)
    assert tilt(values, 0.9, bounds=(0, 9), log_weights=flat) == 0
    assert tilt(values, 1.99, bounds=(0, 9), log_weights=flat) == 9
    theta = tilt(values, 1.4, bounds=(0, 9), log_weights=flat)
    weights = np.exp(theta * values)
    assert 2 * weights @ values / weights.sum() == pytest.approx(1.4, abs=1e-4)


def test_round_trip(fit, tmp_path):
    fit.save(tmp_path / "f.safetensors")
    assert QualityFit.load(tmp_path / "f.safetensors") == fit
    assert Rescorer(ANCHORS, method="ida_q", quality_fit=tmp_path / "f.safetensors").k == K
    others = AnchorSet.from_embeddings(UNSEEN[:120], fingerprint="abc")
    for anchors, message in (
        (AnchorSet.from_embeddings(RAW[3::3]), "fitted with 120 anchors, 119 were given"),
        (AnchorSet.from_embeddings(RAW[::3], fingerprint="xyz"), "fingerprint is xyz"),
        (others, "with another set of 120 anchors"),
    ):
        with pytest.raises(UserError, match=message):
            fit.check_anchors(anchors)
    replace(fit, highest=fit.lowest).save(tmp_path / "g.safetensors")
    with pytest.raises(UserError, match="no range"):
        QualityFit.load(tmp_path / "g.safetensors")


_FEW = np.where(LABELS < 20, LABELS, np.arange(360) + 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": LABELS[1:]}, r"labels are int64 \[359\]"),
        ({"norms": NORMS[1:]}, r"norms are \[359\] for 360 faces"),
        ({"norms": np.r_[NORMS[:9], 0, NORMS[10:]]}, "row 9 is given a norm that is zero"),
        ({"norms": np.r_[-1, np.nan, np.inf, NORMS[3:]]}, "rows 0, 1, 2 are given a norm"),
        ({"norms": np.ones(360)}, "nothing to gain: the norms of 360 embeddings are all 1,"),
        ({"norms": np.full(360, 64.0)}, "nothing to gain: the norms of 360 embeddings are all 64"),
        ({"labels": _FEW}, "show 20 people twice or more often: .* at least 30 such people"),
        ({"k": 119}, "k = 119 neighbours .* 118 are of other people"),
        ({"form": "best"}, "form 'best' is unknown: choose one of fitted, base"),
        ({"labels": np.zeros(360, int)}, "name 1 identities"),
    ],
)
def test_a_fit_that_cannot_be(options, message):
    given = {"norms": NORMS, "labels": LABELS, "k": K} | options
    with pytest.raises(UserError, match=message):
        fit_quality(UNIT, given.pop("norms"), given.pop("labels"), ANCHORS, **given)


def test_few_people_take_their_impostors_from_the_anchors():
    some = slice(0, 120)  # 40 people, 7,020 impostor pairs
    many = AnchorSet.from_embeddings(
        np.concatenate([RAW[::3], UNSEEN]),
        labels=np.concatenate([LABELS[::3], np.arange(360) // 3 + 200]),
    )
    fit = fit_quality(UNIT[some], NORMS[some], LABELS[some], many, k=K)
    assert (fit.form, fit.impostor) == ("base", 120 * 480 - 120)
    assert fit.density_weight == fit.rate / 2
    with pytest.raises(UserError, match=r"7,020 impostor pairs .* needs at least 50,000"):
        fit_quality(UNIT[some], NORMS[some], LABELS[some], ANCHORS, k=K)


def test_normalised_embeddings_are_refused(fit):
    pairs = np.array([[0, 1]])
    for method, options in (("ida_q", {"quality_fit": fit}), ("ida_q_label_free", {})):
        scorer = Rescorer(ANCHORS, method=method, **options)
        for rows in (UNIT, UNIT[:2], 3 * UNIT):
            with pytest.raises(UserError, match=f"{method} has nothing to gain"):
                scorer.score_pairs(rows, pairs)
        with pytest.raises(UserError, match=f"{method} needs the norms"):
            scorer.terms(UNIT)
        with pytest.raises(UserError, match="row 1 is zero, NaN or infinite"):
            scorer.score_pairs(RAW[:2] * np.float32([[1], [0]]), pairs)
        same = scorer.score(RAW[:1], RAW[:1])  # one face twice has one norm: no mistake
        assert np.isfinite(same).all()
        assert np.isnan(scorer.terms(UNIT[:2], norms=np.array([7, np.nan])).values[1]).any()
        for norm in (0.0, -3.0, np.inf):
            with pytest.raises(UserError, match=f"{method}: row 1 is given a norm"):
                scorer.terms(UNIT[:2], norms=np.array([7, norm]))
        with pytest.raises(UserError, match=r"norms are \[3\] for 2 faces"):
            scorer.terms(UNIT[:2], norms=np.full(3, 7.0))
        with pytest.raises(UserError, match=r"k and tau.*: leave them out"):
            Rescorer(ANCHORS, method=method, k=3, **options)


def test_notes_of_the_norms():
    fit = _fit(percentiles=tuple(np.linspace(1.6, 2.8, 99)), anchors_sketch=ANCHORS.sketch)
    scorer = Rescorer(ANCHORS, method="ida_q", quality_fit=fit)
    alike = np.exp(np.random.default_rng(0).uniform(1.6, 2.8, 1000))
    assert norm_notes([scorer], alike) == ()
    assert norm_notes([Rescorer(None, method="cosine")], alike) == ()
    outside = np.append(alike, [1.0, 40.0, np.nan])
    (note,) = norm_notes([scorer], outside)
    assert note.startswith("ida_q: 2 of 1,002 norms are outside 4.48 … 18.2")
    poor = np.where(np.arange(1000) % 2, alike, np.exp(1.55))  # half of them are degraded
    (note,) = norm_notes([scorer], poor)
    assert "of another quality than those that it was fitted on" in note
    assert norm_notes([scorer], poor[:4]) == ()  # too few to tell


def _files(tmp_path, fit):
    rows = np.stack(np.triu_indices(30, 1), axis=1)
    np.save(tmp_path / "e.npy", UNSEEN)
    np.save(tmp_path / "p.npy", rows)
    np.save(tmp_path / "same.npy", LABELS[rows[:, 0]] == LABELS[rows[:, 1]])
    ANCHORS.save(tmp_path / "a.safetensors")
    fit.save(tmp_path / "f.safetensors")
    return rows, [f"--embeddings={tmp_path}/e.npy", f"--anchors={tmp_path}/a.safetensors"]


def test_rescore_and_evaluate_take_the_fit(fit, tmp_path, capsys):
    rows, flags = _files(tmp_path, fit)
    given = f"--quality_fit={tmp_path}/f.safetensors"
    wanted = [*flags, f"--pairs={tmp_path}/p.npy", f"--output={tmp_path}/s.npy", "--method=ida_q"]
    assert exit_code(lambda: rescore(wanted)) == 2
    assert "--method=ida_q needs --quality_fit=FILE" in capsys.readouterr().err
    assert exit_code(lambda: rescore([*wanted, given])) == 0
    scorer = Rescorer(ANCHORS, method="ida_q", quality_fit=fit)
    expected = scorer.score_pairs(UNSEEN, rows)
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), expected, atol=1e-4)

    flags += ["--protocol=pairs", f"--files={tmp_path}/p.npy", f"--labels={tmp_path}/same.npy"]
    flags += ["--resamples=5", "--fars=0.01", "--top_n=20"]
    assert exit_code(lambda: evaluate([*flags, given, f"--output={tmp_path}/out"])) == 0
    methods = json.loads((tmp_path / "out" / "results.json").read_text())["protocols"]["pairs"]
    assert "ida_q" in methods
    assert "ida_q_label_free" not in methods
    np.save(tmp_path / "e.npy", ida_jax.unit_embeddings(UNSEEN))
    capsys.readouterr()
    assert exit_code(lambda: rescore([*wanted, given])) == 2
    error = capsys.readouterr().err
    assert "ida_q has nothing to gain" in error
    assert error.count("\n") == 1


def test_skipped_faces_get_no_score(fit, tmp_path):
    _, flags = _files(tmp_path, fit)
    spoilt = UNSEEN.copy()
    spoilt[3] = 0
    np.save(tmp_path / "e.npy", spoilt)
    flags += [f"--pairs={tmp_path}/p.npy", f"--output={tmp_path}/s.npy", "--skip_bad"]
    flags += [f"--quality_fit={tmp_path}/f.safetensors", "--method=ida_q"]
    assert exit_code(lambda: rescore(flags)) == 0
    pairs = np.load(tmp_path / "p.npy")
    np.testing.assert_array_equal(np.isnan(np.load(tmp_path / "s.npy")), (pairs == 3).any(axis=1))


def test_the_command_is_the_call(fit, tmp_path, capsys):
    np.save(tmp_path / "e.npy", RAW)
    np.save(tmp_path / "l.npy", LABELS)
    ANCHORS.save(tmp_path / "a.safetensors")
    flags = [f"--embeddings={tmp_path}/e.npy", f"--labels={tmp_path}/l.npy", f"--k={K}"]
    flags += [f"--anchors={tmp_path}/a.safetensors", f"--output={tmp_path}/f.safetensors"]
    assert exit_code(lambda: command.main(["quality", *flags, "--form=best"])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "f.safetensors").exists()
    assert exit_code(lambda: command.main(["quality", *flags])) == 0
    out = capsys.readouterr().out
    assert "360 genuine pairs of 120 people and 64,260 impostor pairs" in out
    found = QualityFit.load(tmp_path / "f.safetensors")
    np.testing.assert_allclose(found.constants, fit.constants, rtol=1e-5)
