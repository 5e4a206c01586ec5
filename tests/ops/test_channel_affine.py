"""PReLU's gradients against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ida_jax.ops.channel_affine import affine_prelu


@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradients_of_an_affine_prelu(groups):
    rng = np.random.default_rng(0)
    x, by_result = rng.normal(size=(2, 4, 3, 5, 6))
    factor, offset = rng.normal(size=(2, groups, 6))
    slope = rng.normal(size=6)
    wide_factor, wide_offset = (
        np.repeat(v, 4 // groups, axis=0)[:, None, None] for v in (factor, offset)
    )
    y = x * wide_factor + wide_offset
    assert y.min() < 0 < y.max()
    by_y = by_result * np.where(y >= 0, 1.0, slope)

    def of_groups(values):
        return values.reshape(groups, -1, 6).sum(axis=1)

    expected = (
        by_y * wide_factor, of_groups(by_y * x), of_groups(by_y),
        (by_result * np.minimum(y, 0.0)).sum(axis=(0, 1, 2)),
    )  # fmt: skip
    *given, by_result = (jnp.asarray(v, jnp.float32) for v in (x, factor, offset, slope, by_result))
    _, backward = jax.vjp(lambda *given: affine_prelu(*given, jnp.float32), *given)
    for actual, value in zip(backward(by_result), expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)
