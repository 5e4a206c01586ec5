import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from ida_jax.artefacts.calibration import KINDS, Calibration, fit_calibration
from ida_jax.common.errors import UserError
from ida_jax.metrics.likelihood_ratios import (
    AffineMap,
    cllr,
    fit_isotonic,
    fit_logistic,
    min_cllr,
    percent,
)
from ida_jax.metrics.roc import threshold_interval

# Few distinct values, so that ties are common, and the odd NaN.
values = st.sampled_from([-1.5, -0.25, 0.0, 0.1, 0.25, 1.0, 3.0, math.nan])
score_lists = st.lists(values, min_size=1, max_size=25)
finite_lists = st.lists(values.filter(math.isfinite), min_size=1, max_size=25)


def cllr_oracle(genuine, impostor):
    genuine, impostor = ([0.0 if math.isnan(s) else s for s in x] for x in (genuine, impostor))
    costs = [math.log2(1 + math.exp(-s)) for s in genuine]
    others = [math.log2(1 + math.exp(s)) for s in impostor]
    return (sum(costs) / len(costs) + sum(others) / len(others)) / 2


def pav_oracle(points):
    """[(lowest, highest, genuine, impostor)] by merging neighbours in exact arithmetic.

    points: (score, genuine, impostor) ascending.
    """
    blocks = []
    for score, genuine, impostor in points:
        blocks.append((score, score, genuine, impostor))
        while len(blocks) > 1 and Fraction(blocks[-2][2], sum(blocks[-2][2:])) >= Fraction(
            blocks[-1][2], sum(blocks[-1][2:])
        ):
            (low, _, g0, i0), (_, high, g1, i1) = blocks[-2:]
            blocks[-2:] = [(low, high, g0 + g1, i0 + i1)]
    return blocks


def points_of(genuine, impostor):
    distinct = sorted({s for s in (*genuine, *impostor) if not math.isnan(s)})
    return [(s, list(genuine).count(s), list(impostor).count(s)) for s in distinct]


def min_cllr_oracle(genuine, impostor):
    total = [0.0, 0.0]
    ratio = len(genuine) / len(impostor)
    for _, _, g, i in pav_oracle(points_of(genuine, impostor)):
        total[0] += g * math.log2(1 + ratio * i / g) if g else 0
        total[1] += i * math.log2(1 + g / i / ratio) if i else 0
    nans = [sum(map(math.isnan, x)) for x in (genuine, impostor)]
    return ((total[0] + nans[0]) / len(genuine) + (total[1] + nans[1]) / len(impostor)) / 2


@given(score_lists, score_lists)
def test_cllr_and_its_minimum_match_the_oracles(genuine, impostor):
    assert cllr(genuine, impostor) == pytest.approx(cllr_oracle(genuine, impostor), rel=1e-12)
    expected = min_cllr_oracle(genuine, impostor)
    assert min_cllr(genuine, impostor) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(score_lists, score_lists)
def test_no_increasing_map_has_a_lower_cllr(genuine, impostor):
    least = min_cllr(genuine, impostor)
    genuine, impostor = np.array(genuine), np.array(impostor)
    for slope, offset in ((0.0, 0.0), (1.0, 0.0), (3.0, -1.0), (0.1, 2.0)):
        assert cllr(slope * genuine + offset, slope * impostor + offset) >= least - 1e-12
    cubed = genuine**3, impostor**3
    assert min_cllr(*cubed) == pytest.approx(least, abs=1e-12)


def test_cllr_of_known_cases():
    assert cllr([0.0], [0.0]) == 1
    assert cllr([math.nan], [math.nan, 0.0]) == 1
    assert cllr([800.0], [-800.0]) == 0
    assert cllr([-800.0], [-800.0]) == pytest.approx(400 / math.log(2))
    assert cllr([-math.inf], [0.0]) == math.inf
    assert min_cllr([1.0, 2.0], [0.0, -1.0]) == 0
    assert min_cllr([0.0, 1.0], [2.0, 3.0]) == 1
    assert min_cllr([math.nan], [math.nan]) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_min_cllr_of_sorted_and_shuffled_scores_of_any_precision(dtype):
    rng = np.random.default_rng(0)
    genuine = rng.normal(2, 1, 301).astype(dtype)
    impostor = rng.normal(0, 1, 4001).astype(dtype)
    expected = min_cllr_oracle(genuine.tolist(), impostor.tolist())
    assert min_cllr(genuine, impostor) == pytest.approx(expected, rel=1e-12)
    assert min_cllr(np.sort(genuine), np.sort(impostor)) == min_cllr(genuine, impostor)


def logistic_loss(point, genuine, impostor, prior):
    shift = math.log(prior / (1 - prior))
    llrs = [point[0] * scores + point[1] + shift for scores in (genuine, impostor)]
    own = np.mean(np.logaddexp(0, -llrs[0]))
    return prior * own + (1 - prior) * np.mean(np.logaddexp(0, llrs[1]))


@pytest.mark.parametrize("prior", [0.5, 0.01, 0.9])
def test_logistic_fit_is_the_least_loss(prior):
    rng = np.random.default_rng(1)
    genuine, impostor = rng.normal(0.6, 0.2, 150), rng.normal(0.1, 0.15, 400)
    fitted = fit_logistic(genuine, impostor, prior=prior)
    found = minimize(
        logistic_loss, [1.0, 0.0], args=(genuine, impostor, prior), tol=1e-14, method="Nelder-Mead"
    )
    np.testing.assert_allclose(fitted, found.x, rtol=1e-4)
    assert logistic_loss(fitted, genuine, impostor, prior) <= found.fun + 1e-10


def test_logistic_fit_finds_the_true_ratio_of_two_normals():
    # For N(1, s²) against N(0, s²) the LLR is (score − ½) / s².
    rng = np.random.default_rng(2)
    genuine, impostor = rng.normal(1, 0.5, 200_000), rng.normal(0, 0.5, 200_000)
    slope, offset = fit_logistic(genuine, impostor)
    assert slope == pytest.approx(4, rel=0.02)
    assert offset == pytest.approx(-2, rel=0.02)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 5e8), (1.0, -1e3)])
def test_logistic_llrs_do_not_depend_on_the_scores_unit(scale, shift):
    rng = np.random.default_rng(3)
    genuine, impostor = rng.normal(1, 1, 80), rng.normal(0, 1, 90)
    expected = fit_logistic(genuine, impostor)(genuine)
    mapped = fit_logistic(scale * genuine + shift, scale * impostor + shift)
    np.testing.assert_allclose(mapped(scale * genuine + shift), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gap", [1e-3, 1.0, 1e3])
def test_logistic_fit_of_separable_scores_is_finite(gap):
    genuine, impostor = np.array([gap, 2 * gap]), np.array([-gap, -3 * gap, -gap])
    fitted = fit_logistic(genuine, impostor)
    assert np.isfinite(fitted).all()
    assert 5 < fitted(genuine).min() < 50
    assert -50 < fitted(impostor).max() < -5


def test_only_finite_scores_are_fitted():
    genuine, impostor = np.array([1.0, 2.0, 0.2]), np.array([0.0, 0.5, -1.0])
    dirty = np.array([np.nan, 1.0, 2.0, np.inf, 0.2]), np.array([0.0, -np.inf, 0.5, -1.0, np.nan])
    assert fit_logistic(*dirty) == fit_logistic(genuine, impostor)
    for one, other in zip(fit_isotonic(*dirty), fit_isotonic(genuine, impostor), strict=True):
        np.testing.assert_array_equal(one, other)


@given(finite_lists, finite_lists)
def test_isotonic_llrs_match_the_oracle(genuine, impostor):
    fitted = fit_isotonic(genuine, impostor)
    ends = [(math.nan, 1, 0), (math.nan, 0, 1)]
    odds = (len(genuine) + 2) / (len(impostor) + 2)
    points = [*ends, *points_of(genuine, impostor), *ends]
    for low, high, g, i in blocks_with_counts(points):
        expected = math.log(g / i / odds)
        np.testing.assert_allclose(fitted(np.array([low, high])), expected, atol=1e-12)
    assert (np.diff(fitted.knots) > 0).all()
    assert (np.diff(fitted.llr) >= 0).all()
    assert np.isfinite(fitted.llr).all()


def blocks_with_counts(points):
    """The oracle's blocks with the lowest and highest real score of each."""
    at = iter(points)
    for _, _, genuine, impostor in pav_oracle(points):
        scores, g, i = [], 0, 0
        while (g, i) != (genuine, impostor):
            score, own, other = next(at)
            g, i = g + own, i + other
            scores += [] if math.isnan(score) else [score]
        if scores:
            yield scores[0], scores[-1], genuine, impostor


def test_isotonic_fit_reaches_the_least_cllr_but_for_its_ends():
    rng = np.random.default_rng(4)
    genuine, impostor = rng.normal(2, 1, 3000), rng.normal(0, 1, 30_000)
    fitted = fit_isotonic(genuine, impostor)
    least = min_cllr(genuine, impostor)
    assert least < cllr(fitted(genuine), fitted(impostor)) < 1.005 * least
    # Level outside the knots.
    np.testing.assert_array_equal(fitted(np.array([-99.0, 99.0])), fitted.llr[[0, -1]])


@pytest.mark.parametrize("fit", [fit_logistic, fit_isotonic])
def test_scores_that_cannot_be_fitted_are_the_users_mistake(fit):
    with pytest.raises(UserError, match="no impostor score is finite"):
        fit([1.0], [math.nan, math.inf])
    with pytest.raises(UserError, match="0 genuine scores"):
        fit([], [1.0])


def test_logistic_mistakes():
    with pytest.raises(UserError, match="similarities, not distances"):
        fit_logistic([0.0, 0.1], [0.5, 0.7])
    with pytest.raises(UserError, match="all scores are 2"):
        fit_logistic([2.0], [2.0, 2.0])
    with pytest.raises(UserError, match=r"all scores are 0\.1"):
        fit_logistic(np.full(7, 0.1), np.full(1001, 0.1))
    for prior in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match="prior"):
            fit_logistic([1.0], [0.0], prior=prior)
        with pytest.raises(UserError, match="prior"):
            percent([1.0], prior=prior)


def test_percent():
    np.testing.assert_allclose(percent([0.0, math.log(3), -1e4, 1e4]), [50, 75, 0, 100])
    assert percent([math.log(99)], prior=0.01)[0] == pytest.approx(50)
    assert np.isnan(percent([math.nan])).all()


@pytest.mark.parametrize(
    ("n", "far"), [(1, 0.5), (19, 0.2), (20, 0.05), (400, 0.01), (401, 0.5), (30, 1.0), (50, 1e-4)]
)
def test_threshold_interval_covers_as_it_should(n, far):
    """N ~ Binomial(n, f) lie above the true threshold; the u-th highest is at most it iff N ≤ u."""

    def at_most(rank):
        return sum(math.comb(n, k) * far**k * (1 - far) ** (n - k) for k in range(rank + 1))

    scores = np.random.default_rng(0).permutation(n).astype(np.float32)
    low, high = threshold_interval(scores, far)
    deepest = n if low == -math.inf else n - 1 - int(low)
    highest = -1 if high == math.inf else n - 1 - int(high)
    assert at_most(deepest) >= 0.975 > at_most(deepest - 1)
    assert at_most(highest) <= 0.025 < at_most(highest + 1)


def test_threshold_interval_counts_nan_as_lowest():
    scores = np.array([np.nan] * 50 + list(range(50)), np.float64)
    assert threshold_interval(scores, 0.5).low == -math.inf
    assert (
        threshold_interval(scores, 0.5).high == threshold_interval(np.arange(-50.0, 50), 0.5).high
    )
    with pytest.raises(UserError, match="FAR"):
        threshold_interval(scores, 0.0)


@pytest.fixture
def normals():
    rng = np.random.default_rng(5)
    return rng.normal(2, 1, 200).astype(np.float32), rng.normal(0, 1, 999).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_calibration_is_the_same(kind, normals, tmp_path):
    fitted = fit_calibration(*normals, kind=kind, method="ida_r", scale="log")
    fitted.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    assert (loaded.kind, loaded.method, loaded.scale) == (kind, "ida_r", "log")
    assert (loaded.genuine, loaded.impostor) == (200, 999)
    scores = np.concatenate(normals).reshape(11, 109)
    np.testing.assert_array_equal(loaded.llr(scores), fitted.llr(scores))
    assert loaded.llr(scores).dtype == np.float32
    np.testing.assert_allclose(loaded.percent(scores), percent(fitted.llr(scores)), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_llrs_come_in_chunks_and_keep_nan(kind, count, normals, monkeypatch):
    monkeypatch.setattr("ida_jax.artefacts.calibration._CHUNK", 3)
    fitted = fit_calibration(*normals, kind=kind)
    scores = np.linspace(-3, 5, count)
    scores[count // 2 : count // 2 + 1] = np.nan
    out = fitted.llr(scores)
    np.testing.assert_array_equal(out, fitted.map(scores))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(scores))
    assert (np.diff(out[~np.isnan(out)]) >= 0).all()
    assert fitted.llr(3) == fitted.map(np.float64(3))


def test_calibration_mistakes(normals, tmp_path):
    with pytest.raises(UserError, match="'platt' was asked for"):
        fit_calibration(*normals, kind="platt")
    with pytest.raises(UserError, match="no file"):
        Calibration.load(tmp_path / "absent")
    path = tmp_path / "c.safetensors"
    fitted = fit_calibration(*normals, kind="isotonic")
    for broken in (
        fitted.map._replace(llr=fitted.map.llr[::-1]),
        fitted.map._replace(llr=fitted.map.llr[1:]),
        fitted.map._replace(knots=fitted.map.knots * np.nan),
    ):
        Calibration("isotonic", broken).save(path)
        with pytest.raises(UserError, match="not written by ida_jax"):
            Calibration.load(path)
    for kind, broken in (("logistic", AffineMap(-1.0, 0.0)), ("isotonic", AffineMap(1.0, 0.0))):
        Calibration(kind, broken).save(path)
        with pytest.raises(UserError, match="not written by ida_jax"):
            Calibration.load(path)
