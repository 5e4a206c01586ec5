import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.ops import cohort as ops


def _pairs(shape, seed=0):
    rng = np.random.default_rng(seed)
    cosine, *means = rng.uniform(-1, 1, (3, *shape)).astype(np.float32)
    stds = rng.uniform(0.02, 0.3, (2, *shape)).astype(np.float32)
    return cosine, means[0], stds[0], means[1], stds[1]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (4, 1, 2)])
def test_the_norms_are_their_formulas(shape):
    c, m1, s1, m2, s2 = _pairs(shape)
    got = ops.z_norm(c, m1, s1), ops.t_norm(c, m2, s2), ops.s_norm(c, m1, s1, m2, s2)
    flat = [np.ravel(x).astype(np.float64) for x in (c, m1, s1, m2, s2)]
    for i, (cosine, mean_1, std_1, mean_2, std_2) in enumerate(zip(*flat, strict=True)):
        z, t = (cosine - mean_1) / std_1, (cosine - mean_2) / std_2
        for value, expected in zip(got, (z, t, (z + t) / 2), strict=True):
            assert value.shape == shape
            assert np.ravel(value)[i] == pytest.approx(expected, rel=1e-5, abs=1e-5)


_number = st.floats(-1, 1, width=32)
_spread = st.floats(2**-6, 1, width=32)


@pytest.mark.bits
@given(c=_number, m1=_number, s1=_spread, m2=_number, s2=_spread)
def test_s_norm_and_csn_are_symmetric_to_the_last_bit(c, m1, s1, m2, s2):
    c, m1, s1, m2, s2 = np.float32([c, m1, s1, m2, s2])
    assert ops.s_norm(c, m1, s1, m2, s2) == ops.s_norm(c, m2, s2, m1, s1)
    assert ops.csn_score(c, m1, m2, weight=s1, bias=s2) == ops.csn_score(
        c, m2, m1, weight=s1, bias=s2
    )


def test_s_norm_ignores_scale_and_offset_of_a_model_s_cosines():
    c, m1, s1, m2, s2 = _pairs((50,))
    a, b = np.float32(0.25), np.float32(0.5)
    moved = ops.s_norm(a * c + b, a * m1 + b, a * s1, a * m2 + b, a * s2)
    np.testing.assert_allclose(moved, ops.s_norm(c, m1, s1, m2, s2), atol=2e-5)


def test_csn_score_is_its_formula():
    c, g1, _, g2, _ = _pairs((7,))
    got = ops.csn_score(c, g1, g2, weight=30.0, bias=-4.0)
    np.testing.assert_allclose(got, [30 * c[p] + g1[p] + g2[p] - 4 for p in range(7)], rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "degree"), [(1, 0), (4, 3), (5, 3), (99, 3), (100, 3), (101, 3), (100, 0), (100, 8)]
)
def test_coefficients_are_the_least_squares_fit(n, degree):
    scores = -np.sort(-np.random.default_rng(n).uniform(-1, 1, (2, 3, n))).astype(np.float32)
    got = scores.astype(np.float64) @ ops.polynomial_map(n, degree).T
    assert got.shape == (2, 3, degree + 1)
    expected = [reference.legendre_fit(row, degree) for row in scores.reshape(6, n)]
    np.testing.assert_allclose(got.reshape(6, degree + 1), expected, atol=1e-5)


def test_coefficients_are_read_as_said():
    x = np.linspace(-1, 1, 101)
    scores = (0.4 - 0.1 * x + 0.05 * (1.5 * x**2 - 0.5)).astype(np.float32)
    got = ops.polynomial_map(101, 3) @ scores
    np.testing.assert_allclose(got, [0.4, -0.1, 0.05, 0.0], atol=1e-6)


@pytest.mark.parametrize(("n", "degree"), [(3, 3), (3, 4), (3, -1)])
def test_a_degree_that_the_scores_cannot_give(n, degree):
    with pytest.raises(ValueError, match=f"degree {degree} through n = {n}"):
        ops.polynomial_map(n, degree)


@pytest.mark.parametrize("prior", [0.5, 0.01])
@pytest.mark.parametrize("pairs", [7, 90])
def test_csn_objective_is_its_formula(pairs, prior):
    rng = np.random.default_rng(pairs)
    same = np.arange(pairs) % 3 == 0
    features = rng.normal(size=(pairs, 4)) + same[:, None]
    theta = rng.normal(size=5)
    expected, mean, deviation = reference.csn_objective(theta, features, same, prior, 0.1)
    x = ((features - mean) / deviation).astype(np.float32)
    got = ops.csn_objective(theta.astype(np.float32), x, same, prior=prior, ridge=0.1)
    assert got == pytest.approx(expected, rel=1e-5)
