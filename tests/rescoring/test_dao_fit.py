import json
from dataclasses import replace

import numpy as np
import pytest
import reference

import ida_jax
from ida_jax import fit as command
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError, exit_code
from ida_jax.metrics.roc import tar_at_far
from ida_jax.ops.dao import PairSimilarities
from ida_jax.rescore import main as rescore
from ida_jax.rescoring import dao_fit
from ida_jax.rescoring.dao_fit import DaoFit, fit_dao
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs.protocol_command import main as evaluate


def _people(count, seed):
    """Three faces a person, people in crowds of unequal density; unit rows, and labels."""
    rng = np.random.default_rng(seed)
    crowd = rng.integers(6, size=count)
    centres = rng.normal(size=(6, 24))
    spread = np.array([0.3, 0.4, 0.6, 0.9, 1.2, 1.6])[crowd, None]
    people = centres[crowd] + spread * rng.normal(size=(count, 24))
    faces = np.repeat(people, 3, axis=0) + 0.5 * rng.normal(size=(3 * count, 24))
    return ida_jax.unit_embeddings(faces.astype(np.float32)), np.repeat(np.arange(count), 3)


EVERYBODY, _ALL = _people(240, 5)
PEOPLE, LABELS = EVERYBODY[:360], _ALL[:360]
UNSEEN = EVERYBODY[360:]
ANCHORS = AnchorSet.from_embeddings(PEOPLE[::3], labels=LABELS[::3], fingerprint="abc")
SMALL = {"far": 1e-3, "most_support": 40}


@pytest.fixture(scope="module")
def fit():
    return fit_dao(PEOPLE, LABELS, ANCHORS, **SMALL)


@pytest.mark.parametrize("count", [1, 63, 64, 65])
def test_log_density_and_score_row_by_row(count):
    fit = DaoFit(2.0, 1.7, 5.3, 0.8, width=4, anchors=99)
    pairs = PairSimilarities(*reference.pairs_with_neighbours(count, 0))
    first, second = (fit.terms(side[:, : fit.neighbours]) for side in pairs[1:])
    assert fit.neighbours == 14  # 5.3 + 10 · 0.8, up to a whole rank
    assert first.rule == "dao"
    got = fit.weight * (
        first.constants[0] * pairs.cosine + np.logaddexp(first.values, second.values)[:, 0]
    )
    expected = [
        reference.soft_score(*pair, 2.0, 1.7, 5.3, 0.8) for pair in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(got, expected, atol=1e-3)  # members beyond the 14th are left out


def test_at_the_papers_values_it_is_ida_r():
    faces = reference.unit((31, 24), 3)
    paper = DaoFit(1.0, 1.0, 10.0, 1e-3, width=24, anchors=120, fingerprint="abc")
    fitted = Rescorer(ANCHORS, method="ida_r_fitted", dao_fit=paper)
    rows = np.stack(np.triu_indices(31, 1), axis=1)
    ida_r = Rescorer(ANCHORS).score_pairs(faces, rows)
    np.testing.assert_allclose(fitted.score_pairs(faces, rows), ida_r, atol=1e-6)


def test_neither_person_of_a_pair_is_in_its_support_sets(monkeypatch):
    seen = []

    def spy(genuine, impostor, *_, **__):
        seen.append((genuine, impostor))
        return {"tau": 1.0, "weight": 1.0, "support": 10.0}

    monkeypatch.setattr(dao_fit, "_maximised", spy)
    # Two anchors an identity, one of them of nobody known; the labels start elsewhere than at 0.
    labels = LABELS * 3 + 7
    marked = labels[np.arange(360) % 3 > 0].copy()
    marked[0] = -1
    anchors = AnchorSet.from_embeddings(PEOPLE[np.arange(360) % 3 > 0], labels=marked)
    fit_dao(PEOPLE, labels, anchors, **SMALL)
    genuine, impostor = seen[-1]
    first, second = np.triu_indices(360, 1)
    cosines = np.sum(PEOPLE[first] * PEOPLE[second], axis=1)
    same = labels[first] == labels[second]
    assert len(genuine.cosine) == same.sum()
    # The tail holds the highest by the cosine.
    highest, kept = (np.sort(x)[-256:] for x in (cosines[~same], np.asarray(impostor.cosine)))
    np.testing.assert_allclose(kept, highest, atol=1e-6)
    for pairs, kind in ((genuine, same), (impostor, ~same)):
        for p in (0, len(pairs.cosine) // 2, len(pairs.cosine) - 1):
            place = np.argmin(np.where(kind, abs(cosines - pairs.cosine[p]), np.inf))
            own = labels[[first[place], second[place]]]
            others = anchors.embeddings[~np.isin(anchors.labels, own)]
            for side, row in zip(pairs[1:], (first[place], second[place]), strict=True):
                expected = np.sort(others @ PEOPLE[row])[::-1][:40]
                np.testing.assert_allclose(side[p], expected, atol=1e-5)


def test_the_fit_helps_unseen_people(fit):
    assert (fit.genuine, fit.impostor, fit.identities) == (360, 64260, 120)
    assert (fit.tau, fit.far, fit.anchors, fit.fingerprint) == (1.0, 1e-3, 120, "abc")
    assert (fit.weight, fit.support) != (1.0, 10.0)
    paper = DaoFit(1.0, 1.0, 10.0, 1.0, width=24, anchors=120)
    tars = {}
    for name, each in {"paper": paper, "fitted": fit}.items():
        found = support_sets(UNSEEN, ANCHORS, k=each.neighbours)
        scores = ida_jax.score_all_pairs(UNSEEN, LABELS, each.terms(found.similarities))
        tars[name] = tar_at_far(*scores, [1e-3])[0].tar
    assert tars["fitted"] > tars["paper"]


def test_what_is_not_fitted_keeps_the_papers_value():
    alone = fit_dao(PEOPLE, LABELS, ANCHORS, fitted=("weight",), **SMALL)
    assert (alone.tau, alone.support) == (1.0, pytest.approx(10.0))
    assert alone.weight != pytest.approx(1.0, abs=1e-3)
    held = fit_dao(PEOPLE, LABELS, ANCHORS, ridge=1e4, **SMALL)
    assert held.weight == pytest.approx(1.0, abs=1e-3)


def test_round_trip(fit, tmp_path):
    fit.save(tmp_path / "f.safetensors")
    assert DaoFit.load(tmp_path / "f.safetensors") == fit
    with pytest.raises(UserError, match="of kind 'dao_fit', expected 'csn'"):
        ida_jax.Csn.load(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="fitted with 120 anchors, 119 were given"):
        fit.check_anchors(AnchorSet.from_embeddings(PEOPLE[3::3]))
    with pytest.raises(UserError, match="another set of 120 anchors than the one given"):
        fit.check_anchors(AnchorSet.from_embeddings(PEOPLE[1::3]))
    # A fit of an older version does not know its anchors.
    replace(fit, anchors_sketch="").check_anchors(AnchorSet.from_embeddings(PEOPLE[1::3]))
    with pytest.raises(UserError, match="fingerprint is xyz"):
        fit.check_anchors(AnchorSet.from_embeddings(PEOPLE[::3], fingerprint="xyz"))
    with pytest.raises(UserError, match=r"are \[2, 3\]: expected \[N, "):
        fit.log_density(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS[1:], {}, r"labels are int64 \[359\]"),
        (LABELS.astype(np.float32), {}, "expected one integer for each face"),
        (np.zeros(360, int), {}, "name 1 identities"),
        (np.arange(360) * 3, {"exclude_own": False}, "themselves among their anchors"),
        (LABELS, {"far": 1e-4}, "6 impostors at FAR 0.0001"),
        (LABELS, {"far": 0.5}, "far is 0.5"),
        (LABELS, {"fitted": ("k",)}, "to fit are k: expected some of tau, weight"),
        (LABELS, {"temperature": 0.0}, "temperature = 0"),
        (LABELS, {"images_per_identity": 1}, "images_per_identity is 1"),
        (LABELS, {"most_support": 19}, "leaves 19 neighbours for a face"),
    ],
)
def test_a_fit_that_cannot_be(labels, options, message):
    with pytest.raises(UserError, match=message):
        fit_dao(PEOPLE, labels, ANCHORS, **(SMALL | options))


@pytest.mark.parametrize("count", [10, 19])
def test_too_few_anchors_for_the_papers_k(count):
    with pytest.raises(UserError, match=f"of {count} anchors leaves {count} neighbours for a face"):
        fit_dao(PEOPLE, LABELS, AnchorSet.from_embeddings(UNSEEN[:count]), **SMALL)


@pytest.mark.parametrize("most", [44, 128, 129])
def test_a_fit_on_its_bound_looks_no_further_than_was_searched(most):
    support = float(np.exp(np.log(most - 10.0)))  # above most − 10 in the last bit
    assert DaoFit(1.0, 1.0, support, 1.0, width=24, anchors=500).neighbours == most


def test_no_genuine_pairs():
    strangers = AnchorSet.from_embeddings(UNSEEN)
    with pytest.raises(UserError, match="0 genuine and 64,620 impostor"):
        fit_dao(PEOPLE, np.arange(360), strangers, **SMALL)


def test_the_command_is_the_call(fit, tmp_path, capsys):
    np.save(tmp_path / "e.npy", 3 * PEOPLE)
    np.save(tmp_path / "l.npy", LABELS)
    ANCHORS.save(tmp_path / "a.safetensors")
    flags = [f"--embeddings={tmp_path}/e.npy", f"--labels={tmp_path}/l.npy", "--most_support=40"]
    flags += [f"--anchors={tmp_path}/a.safetensors", f"--output={tmp_path}/f.safetensors"]
    assert exit_code(lambda: command.main(["dao", *flags, "--far=0.9"])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "f.safetensors").exists()
    assert exit_code(lambda: command.main(["dao", *flags, "--far=0.001"])) == 0
    assert "360 genuine and 64,260 impostor pairs of 120 identities" in capsys.readouterr().out
    found = DaoFit.load(tmp_path / "f.safetensors")
    assert found.support == pytest.approx(fit.support, rel=0.02)
    assert found.weight == pytest.approx(fit.weight, rel=0.02)


def test_rescore_and_evaluate_take_the_fit(fit, tmp_path, capsys):
    rows = np.stack(np.triu_indices(30, 1), axis=1)
    np.save(tmp_path / "e.npy", UNSEEN)
    np.save(tmp_path / "p.npy", rows)
    np.save(tmp_path / "same.npy", LABELS[rows[:, 0]] == LABELS[rows[:, 1]])
    ANCHORS.save(tmp_path / "a.safetensors")
    fit.save(tmp_path / "f.safetensors")
    flags = [f"--embeddings={tmp_path}/e.npy", f"--anchors={tmp_path}/a.safetensors"]
    given = f"--dao_fit={tmp_path}/f.safetensors"
    wanted = [*flags, f"--pairs={tmp_path}/p.npy", f"--output={tmp_path}/s.npy"]
    wanted.append("--method=ida_r_fitted")
    assert exit_code(lambda: rescore(wanted)) == 2
    assert "--method=ida_r_fitted needs --dao_fit=FILE" in capsys.readouterr().err
    assert exit_code(lambda: rescore([*wanted, given, "--k=9"])) == 2
    assert "its k and tau from its fit" in capsys.readouterr().err
    assert exit_code(lambda: rescore([*wanted, given])) == 0
    expected = Rescorer(ANCHORS, method="ida_r_fitted", dao_fit=fit).score_pairs(UNSEEN, rows)
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), expected, atol=1e-6)

    flags += ["--protocol=pairs", f"--files={tmp_path}/p.npy", f"--labels={tmp_path}/same.npy"]
    flags += ["--resamples=5", "--fars=0.01", f"--output={tmp_path}/out", "--top_n=20"]
    assert exit_code(lambda: evaluate([*flags, "--methods=ida_r_fitted"])) == 2
    assert "ida_r_fitted needs --dao_fit" in capsys.readouterr().err
    assert exit_code(lambda: evaluate([*flags, given])) == 0
    figures = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "ida_r_fitted" in json.dumps(figures)
