import numpy as np
import pytest

from ida_jax.metrics.decisions import Failure, worst_places
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.roc import SplitScores
from ida_jax.protocols.failures import described
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.report.failures import failure_section
from ida_jax.rescoring.terms import cosine_terms, dao_terms

HOSTILE = "<script>alert(1)</script>\"'\x1b[31m" + "x" * 500


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
    return faces, labels, density, methods, found


def test_pairs_to_look_at_are_the_worst_of_all(everything):
    faces, labels, density, methods, found = everything
    names = [f"p{row // 2}/{row}" for row in range(100)]
    failures = described(found.worst, found.changed, faces, names, methods)
    first, second = np.triu_indices(100, 1)
    cosine = np.float64(faces)[first] @ np.float64(faces).T
    cosine = cosine[np.arange(first.size), second]
    log_dao = cosine + np.logaddexp(*(np.float64(density)[side] for side in (first, second)))
    same = labels[first] == labels[second]
    for method, scores in (("cosine", cosine), ("ida_r", log_dao)):
        for genuine in (True, False):
            kept = [f for f in failures if f[:3] == (method, "worst", genuine)]
            expected = np.sort(scores[same == genuine])
            expected = expected[:20] if genuine else expected[::-1][:20]
            np.testing.assert_allclose([f.score for f in kept], expected, atol=1e-5)
            for failure in kept:
                a, b = (int(name.split("/")[1]) for name in failure.names)
                assert (labels[a] == labels[b]) == genuine
                assert failure.cosine == pytest.approx(float(faces[a] @ faces[b]), abs=1e-5)
                expected_density = (density[a], density[b]) if method == "ida_r" else None
                assert failure.log_density == expected_density
    changed = {(f.kind, f.genuine) for f in failures} - {("worst", True), ("worst", False)}
    assert changed == {kind for kind, of in found.changed.items() if of.total}


def test_hostile_names_are_text():
    failures = (
        Failure("cosine", "worst", False, (HOSTILE, "b"), 0.5, None, 0.5),
        Failure("ida_r", "broken", True, ("a", "b"), -0.5, (-2.0, -2.5), -1.25),
    )
    shown = failure_section({"all": Evaluation({}, {}, failures=failures)})
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert "x" * 100 not in shown
    assert shown.count("<details") == 2
    assert "broken: genuine pairs that the cosine accepts" in shown
    assert "<td>−0.5000</td><td>−2.0000</td><td>−2.5000</td><td>−1.2500</td>" in shown
    assert failure_section({"all": Evaluation({}, {})}) == ""
