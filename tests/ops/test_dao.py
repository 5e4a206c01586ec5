from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import example, given
from hypothesis import strategies as st
from jax.test_util import check_grads

from ida_jax.ops import dao as ops


def _support(pairs, k, d, seed):
    f = [reference.unit((pairs, d), seed + i) for i in range(2)]
    psi = [reference.unit((pairs, k, d), seed + 2 + i) for i in range(2)]
    return f, psi


def _log_dao(f1, f2, psi1, psi2, tau):
    s1 = jnp.einsum("pd,pkd->pk", f1, psi1, precision="highest")
    s2 = jnp.einsum("pd,pkd->pk", f2, psi2, precision="highest")
    cosine = jnp.einsum("pd,pd->p", f1, f2, precision="highest")
    first, second = ops.log_density(s1, tau=tau), ops.log_density(s2, tau=tau)
    return ops.log_dao(cosine, first, second, tau=tau)


@pytest.mark.parametrize("tau", [0.01, 0.5, 1.0, 4.0, 64.0])
@pytest.mark.parametrize("k", [1, 9, 10, 11])
def test_log_dao_is_equation_4(tau, k):
    f, psi = _support(7, k, 16, seed=k)
    expected = [
        np.log(reference.dao(f[0][p], f[1][p], psi[0][p], psi[1][p], tau)) for p in range(7)
    ]
    got = _log_dao(f[0], f[1], psi[0], psi[1], tau)
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, tau), rtol=1e-6)


def test_dao_and_density_are_the_paper_s_scale():
    f, psi = _support(5, 10, 32, seed=3)
    s = [np.einsum("pd,pkd->pk", f[i], psi[i]) for i in range(2)]
    density = [ops.density(s[i]) for i in range(2)]
    expected = [[reference.density(row, 1.0) for row in s[i]] for i in range(2)]
    np.testing.assert_allclose(density, expected, rtol=1e-5)
    cosine = np.einsum("pd,pd->p", f[0], f[1])
    got = ops.dao(cosine, jnp.log(density[0]), jnp.log(density[1]))
    expected = [reference.dao(f[0][p], f[1][p], psi[0][p], psi[1][p], 1.0) for p in range(5)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (4, 1, 2)])
def test_any_leading_shape(shape):
    s = np.random.default_rng(0).uniform(-1, 1, (*shape, 10)).astype(np.float32)
    got = ops.log_density(s)
    assert got.shape == shape
    expected = [np.log(reference.density(row, 1.0)) for row in s.reshape(-1, 10)]
    np.testing.assert_allclose(got, np.reshape(expected, shape), rtol=1e-5)
    assert ops.log_dao(s[..., 0], got, got).shape == shape


def test_tau_may_differ_by_face():
    s = np.random.default_rng(0).uniform(-1, 1, (3, 10)).astype(np.float32)
    tau = np.array([0.5, 1.0, 16.0], np.float32)
    expected = [np.log(reference.density(s[i], tau[i])) for i in range(3)]
    np.testing.assert_allclose(ops.log_density(s, tau=tau), expected, rtol=1e-5)


@example(tau=500.0, cosine=1.0, s=[-1.0])
@example(tau=500.0, cosine=-1.0, s=[1.0] * 20)
@given(
    tau=st.floats(0.01, 500),
    cosine=st.floats(-1, 1, width=32),
    s=st.sampled_from([1, 2, 9, 20]).flatmap(
        lambda k: st.lists(st.floats(-1, 1, width=32), min_size=k, max_size=k)
    ),
)
def test_finite_and_symmetric(tau, cosine, s):
    s, cosine = np.array(s, np.float32), np.float32(cosine)
    first = ops.log_density(s, tau=tau)
    second = ops.log_density(s[:1], tau=tau)
    score = ops.log_dao(cosine, first, second, tau=tau)
    assert np.isfinite(score)
    assert score == ops.log_dao(cosine, second, first, tau=tau)
    assert np.isfinite(ops.density(s, tau=tau))
    assert np.isfinite(ops.dao(cosine, first, second, tau=tau))
    assert np.isfinite(jax.grad(lambda t: ops.log_density(s, tau=t))(tau))


def test_denser_neighbourhood_lowers_the_score():
    sparse, dense = np.full(10, 0.1, np.float32), np.full(10, 0.6, np.float32)
    other = ops.log_density(sparse)
    cosine = np.float32(0.5)
    assert ops.log_dao(cosine, ops.log_density(dense), other) < ops.log_dao(cosine, other, other)


@pytest.mark.parametrize("hole", [0.5, -np.inf, np.nan])
def test_a_mask_is_a_shorter_support_set(hole):
    s = np.random.default_rng(1).uniform(-1, 1, (6, 10)).astype(np.float32)
    where = np.random.default_rng(2).random((6, 10)) < 0.6
    where[0] = True
    filled = np.where(where, s, np.float32(hole))
    expected = [np.log(reference.density(s[i][where[i]], 2.0)) for i in range(6)]
    np.testing.assert_allclose(ops.log_density(filled, tau=2.0, where=where), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(ops.log_density(x, tau=2.0, where=where)))(filled)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[~where] == 0)


def test_no_neighbour_is_no_density():
    s = np.zeros((2, 3), np.float32)
    where = np.array([[False, False, False], [True, False, False]])
    got = np.asarray(ops.log_density(s, where=where))
    assert np.isposinf(got[0])
    assert np.isfinite(got[1])


@pytest.mark.parametrize("tau", [1.0, 16.0])
def test_gradients_in_embeddings_and_tau(tau):
    f, psi = _support(2, 4, 5, seed=9)
    args = (*map(jnp.asarray, (*f, *psi)), jnp.float32(tau))
    check_grads(jax.jit(_log_dao), args, order=1, modes=["rev"], eps=1e-3, atol=2e-2, rtol=2e-2)


def test_smooth_tar_and_its_gradient():
    genuine, impostor = (
        ops.PairSimilarities(*map(jnp.asarray, reference.pairs_with_neighbours(*each)))
        for each in ((37, 1), (90, 2))
    )
    rank, softness, temperature = 11, 0.9, 0.3
    theta = np.log([4.0, 0.8, 7.0])

    def transcription(theta):
        tau, *others = np.exp(theta)

        def z_of(pairs):
            sides = zip(*(np.asarray(x, np.float64) for x in pairs), strict=True)
            scores = [reference.soft_score(*pair, tau, *others, softness) for pair in sides]
            return np.array(scores) / tau

        z, z_impostor = z_of(genuine), z_of(impostor)
        threshold = np.mean(np.sort(z_impostor)[::-1][rank // 2 : 2 * rank])
        return np.mean(1 / (1 + np.exp((threshold - z) / temperature)))

    smooth_tar = partial(ops.smooth_tar, rank=rank)
    value, slope = jax.jit(jax.value_and_grad(smooth_tar))(
        jnp.asarray(theta, jnp.float32), genuine, impostor,
        softness=jnp.float32(softness), temperature=jnp.float32(temperature),
    )  # fmt: skip
    assert value == pytest.approx(transcription(theta), abs=1e-5)
    steps = np.eye(3) * 1e-5
    expected = [(transcription(theta + h) - transcription(theta - h)) / 2e-5 for h in steps]
    assert np.all(np.abs(expected) > 1e-3)
    np.testing.assert_allclose(slope, expected, atol=2e-4)
