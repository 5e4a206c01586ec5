"""x · a + b by channel, alone or with a PReLU, and the sums over a batch that go with it.

What BatchNorm is made of. The gradients are written out for XLA's GPU compiler, which otherwise
writes the gradient by x · a + b to memory and reads it again, twice, and takes three kernels for
two sums.

B batch, G groups, C channels. Images and maps are [B, ..., C]; a, b and slopes are float32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Longer sums of one image are cut into parts, which kernels run side by side.
_LONGEST = 4096


def channel_sums(arrays: tuple[jax.Array, ...], groups: int = 1) -> jax.Array:
    """Σ over a group's rows of each array [B, ..., C]: float32 [arrays, G, C].

    By image first, and then over images: one kernel each on a GPU, for all arrays together. Groups
    are equal parts of the batch, neighbours together, so that a sharded batch stays in place.
    """
    parts = []
    for x in arrays:
        images, *sides, channels = x.shape
        rows = math.prod(sides)
        cut = math.gcd(rows, 8) if rows > _LONGEST else 1
        x = x.reshape(images * cut, rows // cut, channels)
        parts.append(jnp.sum(x, axis=1).reshape(groups, images * cut // groups, channels))
    return jnp.sum(jnp.stack(parts), axis=2)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: jax.Array, factor: jax.Array, offset: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x · a + b for float32 x [B, ..., C] and a, b [G, C], rounded to `dtype`."""
    return _affine(x, factor, offset).astype(dtype)


def _affine_forward(
    x: jax.Array, factor: jax.Array, offset: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return affine(x, factor, offset, dtype), (x, factor)


def _affine_backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, factor = kept
    gradient = gradient.astype(jnp.float32)
    by_offset, by_factor = channel_sums((gradient, gradient * x), len(factor))
    return gradient * _over_rows(factor, x), by_factor, by_offset


affine.defvjp(_affine_forward, _affine_backward)


@jax.custom_vjp
def add_affine(
    shortcut: jax.Array, x: jax.Array, factor: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """shortcut + x · a + b, for float32 x as in `affine`, in the shortcut's type; twice.

    Two results, for the two that read a residual block's: their gradients are then added here,
    where the sums are taken as they are written.
    """
    total = shortcut + _affine(x, factor, offset).astype(shortcut.dtype)
    return total, total


def _add_affine_forward(
    shortcut: jax.Array, x: jax.Array, factor: jax.Array, offset: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    return add_affine(shortcut, x, factor, offset), (x, factor)


def _add_affine_backward(
    kept: tuple[jax.Array, jax.Array], gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    x, factor = kept
    wide = gradients[0].astype(jnp.float32) + gradients[1].astype(jnp.float32)
    by_offset, by_factor = channel_sums((wide, wide * x), len(factor))
    # What follows reads the sum, and does not compute it again.
    gradient, factor, by_offset, by_factor = lax.optimization_barrier(
        (wide.astype(gradients[0].dtype), factor, by_offset, by_factor)
    )
    return gradient, gradient.astype(jnp.float32) * _over_rows(factor, x), by_factor, by_offset


add_affine.defvjp(_add_affine_forward, _add_affine_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def affine_prelu(
    x: jax.Array, factor: jax.Array, offset: jax.Array, slope: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """max(y, 0) + s · min(y, 0) of y = x · a + b, for slopes s [C]; else as `affine`."""
    y = _affine(x, factor, offset)
    return (y * jnp.where(y >= 0, 1.0, _over_rows(slope[None], y))).astype(dtype)


def _affine_prelu_forward(
    x: jax.Array, factor: jax.Array, offset: jax.Array, slope: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return affine_prelu(x, factor, offset, slope, dtype), (x, factor, offset, slope)


def _affine_prelu_backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, *vectors = kept

    def of(vectors: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """y, and the gradient by y."""
        y = _affine(x, *vectors[:2])
        return y, gradient * jnp.where(y >= 0, 1.0, _over_rows(vectors[2][None], y))

    # Barriers hide from XLA that y is computed in the forward pass and several times here: to keep
    # its signs costs more. The slopes' sum is taken with the result, since the shared memory of a
    # GPU's core does not hold three sums.
    gradient, one, other = lax.optimization_barrier((gradient, vectors, vectors))
    gradient = gradient.astype(jnp.float32)
    by_offset, by_factor = channel_sums((of(one)[1], of(other)[1] * x), len(vectors[0]))
    gradient, vectors, by_offset, by_factor = lax.optimization_barrier(
        (gradient.astype(dtype), vectors, by_offset, by_factor)
    )
    gradient = gradient.astype(jnp.float32)
    y, by_y = of(vectors)
    by_slope = channel_sums((gradient * jnp.minimum(y, 0.0),))[0, 0]
    return by_y * _over_rows(vectors[0], x), by_factor, by_offset, by_slope


affine_prelu.defvjp(_affine_prelu_forward, _affine_prelu_backward)


def _affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    return x * _over_rows(factor, x) + _over_rows(offset, x)


def _over_rows(values: jax.Array, x: jax.Array) -> jax.Array:
    """[G, C] for x [B, ..., C]: of shape [1, ..., C], or of x's."""
    groups, channels = values.shape
    ones = (1,) * (x.ndim - 2)
    if groups == 1:
        return values.reshape(1, *ones, channels)
    rows = len(x) // groups
    values = jnp.broadcast_to(values[:, None], (groups, rows, channels))
    return values.reshape(len(x), *ones, channels)
