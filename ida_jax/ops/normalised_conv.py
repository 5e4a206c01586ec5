"""A 3×3 convolution of a normalised map, x · a + b by channel, without writing that map.

    conv(x · a + b, w) = conv(x, w · a) + Σ_taps b · w

but at the border, where a tap falls outside: there the padding is 0, not b. So

    conv(x · a + b, w) = conv(x, w · a) + constant + border,
    constant[o] = Σ_{i,j,c} b[c] w[i,j,c,o],
    border[p,o] = −Σ over the taps (i, j) that fall outside at pixel p of Σ_c b[c] w[i,j,c,o].

In training the BatchNorm behind the convolution takes the constant away again, which therefore is
left out and given back beside the map. What is left of b is at the border, and so is its gradient:
a sum over the border's pixels instead of one over all.

Neither the normalised map nor the gradient by it is written or read: where BatchNorm precedes every
other convolution ("iresnet"), a seventh of what the kernels beside the convolutions move. Exact but
for rounding, of the kernel's product with a in place of the map's.

B batch, H and W map size, C input channels, O output channels; kernels are [3, 3, C, O].
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.ops.convolution import conv, conv_by_kernel, conv_by_map


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalised_conv(
    x: jax.Array, factor: jax.Array, offset: jax.Array, kernel: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """conv(x · a + b, w) − constant, padded by 1 with zeros, and the constant.

    Args:
      x: float32 [B, H, W, C].
      factor: a, float32 [C].
      offset: b, float32 [C].
      kernel: w, float32 [3, 3, C, O].
      dtype: that the convolution computes in.

    Returns:
      float32 [B, H, W, O], and the constant, float32 [O], through which no gradient flows.
    """
    return _forward(x, factor, offset, kernel, dtype)[0]


def _forward(
    x: jax.Array, factor: jax.Array, offset: jax.Array, kernel: jax.Array, dtype: jnp.dtype
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    y = conv(x.astype(dtype), _scaled(kernel, factor, dtype)).astype(jnp.float32)
    taps = jnp.sum(kernel * offset[None, None, :, None], axis=2)
    _, height, width, _ = x.shape
    above, left = _outside(height), _outside(width)
    either = np.maximum(above[:, None, :, None], left[None, :, None, :])
    border = jnp.sum(either[..., None] * taps[None, None], axis=(2, 3))
    return (y - border[None], jnp.sum(taps, axis=(0, 1))), (x, factor, offset, kernel)


def _backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    x, factor, offset, kernel = kept
    by_y = gradients[0].astype(dtype)
    narrow, scaled = x.astype(dtype), _scaled(kernel, factor, dtype)
    by_x = conv_by_map(narrow.shape, by_y, scaled)
    by_scaled = conv_by_kernel(scaled.shape, narrow, by_y)
    by_x, by_scaled = by_x.astype(jnp.float32), by_scaled.astype(jnp.float32)
    by_taps = -_outside_sums(by_y)[:, :, None]
    both = jnp.stack([by_scaled, jnp.broadcast_to(by_taps, kernel.shape)])
    by_factor, by_offset = jnp.sum(kernel[None] * both, axis=(1, 2, 4))
    by_kernel = factor[None, None, :, None] * by_scaled + offset[None, None, :, None] * by_taps
    return by_x, by_factor, by_offset, by_kernel


normalised_conv.defvjp(_forward, _backward)


def _scaled(kernel: jax.Array, factor: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (kernel * factor[None, None, :, None]).astype(dtype)


def _outside(size: int) -> np.ndarray:
    """float32 [size, 3]: 1 where a tap of that row (or column) falls outside."""
    rows = np.arange(size)[:, None] + np.arange(-1, 2)[None]
    return ((rows < 0) | (rows >= size)).astype(np.float32)


def _outside_sums(y: jax.Array) -> jax.Array:
    """Of each tap the sum of y [B, H, W, O] over the pixels where it is outside: [3, 3, O]."""
    height, width, channels = y.shape[1:]
    row_ends, column_ends = _ends(height), _ends(width)
    # A tap that is outside on both sides counts in the row, and not again in the column.
    inside = 1.0 - _outside(height)
    taps = np.concatenate([
        np.broadcast_to(row_ends[:, None, :, None], (len(row_ends), width, 3, 3)).reshape(-1, 3, 3),
        (inside[:, None, :, None] * column_ends[None, :, None, :]).reshape(-1, 3, 3),
    ])  # fmt: skip
    rows, columns = y[:, :: max(height - 1, 1)], y[:, :, :: max(width - 1, 1)]
    sums = [
        jnp.sum(side.astype(jnp.float32), axis=0).reshape(-1, 1, 1, channels)
        for side in (rows, columns)
    ]
    return jnp.sum(taps[..., None] * jnp.concatenate(sums), axis=0)


def _ends(size: int) -> np.ndarray:
    """`_outside` of the first row and of the last one, or of both in one."""
    return _outside(size)[:: max(size - 1, 1)]
