import numpy as np
import pytest

from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.decisions import worst_places
from ida_jax.metrics.groups import FaceGroups, level_cells
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.protocols.failures import described, log_densities
from ida_jax.protocols.verification import evaluate_all_pairs, evaluate_kfold
from ida_jax.rescoring.terms import cosine_terms, dao_terms


@pytest.mark.parametrize("most", [1, 5, 50])
def test_worst_places(most):
    rng = np.random.default_rng(0)
    split = SplitScores(rng.normal(size=30), rng.normal(size=40))
    split.genuine[3] = split.impostor[7] = np.nan
    genuine, impostor = worst_places(split, most=most)
    low = np.where(np.isnan(split.genuine), -np.inf, split.genuine)
    high = np.where(np.isnan(split.impostor), -np.inf, split.impostor)
    np.testing.assert_array_equal(genuine, np.argsort(low)[:most])
    np.testing.assert_array_equal(impostor, np.argsort(-high)[:most])


@pytest.fixture(scope="module")
def everything():
    rng = np.random.default_rng(0)
    faces = np.repeat(rng.normal(size=(50, 8)), 2, axis=0) + 0.6 * rng.normal(size=(100, 8))
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    labels = np.repeat(np.arange(50), 2)
    density = rng.normal(-2, 0.3, 100).astype(np.float32)
    methods = {"cosine": cosine_terms(100), "ida_r": dao_terms(density, tau=1.0)}
    found = evaluate_all_pairs(faces, labels, methods, fars=(1e-2,), resamples=0)
    assert found.changed["corrected", True].total
    return faces, labels, density, methods, found


def check(failures, names, faces, density, scores, same, pairs, right):
    """Against all pairs, their scores and their decisions, {method: bool [P]}.

    Args:
      pairs: (first, second), rows.
    """
    place_of = {(names[a], names[b]): p for p, (a, b) in enumerate(zip(*pairs, strict=True))}
    for method in ("cosine", "ida_r"):
        corrected = right[method] & ~right["cosine"]
        broken = right["cosine"] & ~right[method]
        for kind, wanted in (("worst", None), ("corrected", corrected), ("broken", broken)):
            for genuine in (True, False):
                kept = [f for f in failures.pairs if f[:3] == (method, kind, genuine)]
                places = [place_of[f.names] for f in kept]
                shown = [f.score for f in kept]
                of = scores[method]
                assert shown == sorted(shown, reverse=True)
                np.testing.assert_allclose(shown, of[places], atol=1e-5)
                if wanted is None:
                    expected = np.sort(of[same == genuine])[: 40 if genuine else None][-40:]
                    np.testing.assert_allclose(shown, expected[::-1], atol=1e-5)
                else:
                    expected = np.flatnonzero(wanted & (same == genuine))
                    assert len(set(places)) == min(40, expected.size)
                    assert set(places) <= set(expected.tolist())
                for failure, place in zip(kept, places, strict=True):
                    a, b = (side[place] for side in pairs)
                    assert failure.cosine == pytest.approx(float(faces[a] @ faces[b]), abs=1e-5)
                    log_f = (density[a], density[b]) if method == "ida_r" else None
                    assert failure.log_density == log_f
                    assert failure.group == ("low" if max(a, b) < 50 else "high")


def test_pairs_of_all(everything):
    faces, labels, density, methods, found = everything
    names = [f"p{row // 2}/{row}" for row in range(100)]
    groups = FaceGroups((np.arange(100) < 50).astype(int), level_cells(["high", "low"]))
    failures = described(
        found.listed, faces, names, densities=log_densities(methods), groups=groups
    )
    pairs = np.triu_indices(100, 1)
    scores = all_scores(faces, density, pairs)
    same = labels[pairs[0]] == labels[pairs[1]]
    right = {}
    for name, of in scores.items():
        threshold = tar_at_far(of[same], of[~same], [found.changed_far])[0].threshold
        right[name] = (of > threshold) == same
    check(failures, names, faces, density, scores, same, pairs, right)


def all_scores(faces, density, pairs):
    first, second = pairs
    cosine = np.einsum("pd,pd->p", np.float64(faces)[first], np.float64(faces)[second])
    both = np.logaddexp(np.float64(density)[first], np.float64(density)[second])
    return {"cosine": cosine, "ida_r": cosine + both}


def test_pairs_of_a_list_by_folds(everything):
    faces, labels, density, methods, _ = everything
    rng = np.random.default_rng(1)
    pairs = np.array([(2 * i, 2 * i + 1) for i in range(50)])
    while len(pairs) < 100:
        a, b = sorted(rng.choice(100, 2, replace=False).tolist())
        if labels[a] != labels[b] and [a, b] not in pairs.tolist():
            pairs = np.append(pairs, [[a, b]], axis=0)
    pairs = pairs[rng.permutation(100)]
    same, fold = labels[pairs[:, 0]] == labels[pairs[:, 1]], np.arange(100) // 25
    names = [f"{row}" for row in range(100)]
    groups = FaceGroups((np.arange(100) < 50).astype(int), level_cells(["high", "low"]))
    options = {"labels": labels, "names": names, "groups": groups, "resamples": 0}
    evaluated = evaluate_kfold(faces, PairList(pairs, same, fold), methods, **options)
    scores = all_scores(faces, density, pairs.T)
    right = {name: kfold_accuracy(of, same, folds=fold).correct for name, of in scores.items()}
    check(evaluated.failures, names, faces, density, scores, same, tuple(pairs.T), right)
    bad = np.arange(100) == pairs[same][0, 0]
    failures = evaluate_kfold(
        faces, PairList(pairs, same, fold), methods, bad=bad, **options
    ).failures.pairs
    unknown = [f for f in failures if np.isnan(f.score)]
    assert unknown
    assert all(np.isnan(f.cosine) and names[pairs[same][0, 0]] in f.names for f in unknown)
