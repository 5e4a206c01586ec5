"""Image resampling: StyleGAN2's FIR filters, and between face crops and a generator's resolution.

The filter is [1, 3, 3, 1] ⊗ [1, 3, 3, 1] / 64 (Karras et al., "Analyzing and Improving the Image
Quality of StyleGAN", 2020), written as sums of shifted images: XLA fuses them, and a depthwise
convolution with its gradients would be slow on every device.

B batch, H height, W width, C channels, R resolution.
"""

import jax
import jax.numpy as jnp


def upsample(images: jax.Array) -> jax.Array:
    """Twice the size: zeros inserted, the filter applied, times 4.

        y[2i] = (x[i−1] + 3·x[i]) / 4        y[2i+1] = (3·x[i] + x[i+1]) / 4

    along each axis, with zeros outside: `upfirdn2d(up=2)` of StyleGAN2's code.

    Args:
      images: [B, H, W, C].

    Returns:
      [B, 2H, 2W, C], of the same type.
    """
    for axis in (1, 2):
        before, after = _padded(images, axis, 1, 0), _padded(images, axis, 0, 1)
        size = images.shape[axis]
        even = (_part(before, axis, 0, size) + 3 * images) / 4
        odd = (3 * images + _part(after, axis, 1, size)) / 4
        shape = (*images.shape[:axis], 2 * size, *images.shape[axis + 1 :])
        images = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return images


def downsample(images: jax.Array) -> jax.Array:
    """Half the size: the filter applied, every second pixel taken.

        y[i] = (x[2i−1] + 3·x[2i] + 3·x[2i+1] + x[2i+2]) / 8

    along each axis, with zeros outside: `upfirdn2d(down=2)` of StyleGAN2's code.

    Args:
      images: [B, H, W, C], H and W even.

    Returns:
      [B, H/2, W/2, C], of the same type.
    """
    for axis in (1, 2):
        images = _filtered(images, axis, pad=1, stride=2)
    return images


def blur(images: jax.Array) -> jax.Array:
    """The filter before a 3×3 convolution of stride 2 without padding, which halves the size.

        y[j] = (x[j−2] + 3·x[j−1] + 3·x[j] + x[j+1]) / 8,  j = 0 … H

    along each axis, with zeros outside.

    Args:
      images: [B, H, W, C].

    Returns:
      [B, H+1, W+1, C], of the same type.
    """
    for axis in (1, 2):
        images = _filtered(images, axis, pad=2, stride=1)
    return images


def smooth(images: jax.Array) -> jax.Array:
    """The filter behind a transposed 3×3 convolution of stride 2, times 4.

        y[j] = (x[j−1] + 3·x[j] + 3·x[j+1] + x[j+2]) / 4,  j = 0 … H−2

    along each axis, with zeros outside.

    Args:
      images: [B, H, W, C].

    Returns:
      [B, H−1, W−1, C], of the same type.
    """
    for axis in (1, 2):
        images = 2 * _filtered(images, axis, pad=1, stride=1)
    return images


def to_resolution(images: jax.Array, resolution: int) -> jax.Array:
    """Face crops at a generator's resolution: shrunk, or reflected outwards where they are smaller.

    A generator of 128 px so learns crops of 112 px pixel by pixel, with 8 px of border around them.

    Args:
      images: float [B, S, S, 3]; S − R even where S < R.
      resolution: R, below 2·S.

    Returns:
      [B, R, R, 3].
    """
    size = images.shape[1]
    if resolution > size:
        border = ((0, 0), *[((resolution - size) // 2,) * 2] * 2, (0, 0))
        return jnp.pad(images, border, mode="reflect")
    if resolution == size:
        return images
    shape = (images.shape[0], resolution, resolution, images.shape[3])
    return jax.image.resize(images, shape, "linear", antialias=True)


def to_crops(images: jax.Array, size: int) -> jax.Array:
    """A generator's images as face crops: the way back from `to_resolution`.

    Args:
      images: float [B, R, R, 3].
      size: S, of the crops: the centre of larger images, smaller ones enlarged (cubic).

    Returns:
      [B, S, S, 3].
    """
    resolution = images.shape[1]
    if resolution >= size:
        first = (resolution - size) // 2
        return images[:, first : first + size, first : first + size]
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[3]), "cubic")


def _filtered(images: jax.Array, axis: int, *, pad: int, stride: int) -> jax.Array:
    padded = _padded(images, axis, pad, pad)
    size = (images.shape[axis] + 2 * pad - 4) // stride + 1
    a, b, c, d = (_part(padded, axis, tap, size, stride) for tap in range(4))
    return (a + 3 * b + 3 * c + d) / 8


def _padded(images: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    widths = [(0, 0)] * images.ndim
    widths[axis] = (before, after)
    return jnp.pad(images, widths)


def _part(images: jax.Array, axis: int, first: int, count: int, stride: int = 1) -> jax.Array:
    last = first + (count - 1) * stride + 1
    return jax.lax.slice_in_dim(images, first, last, stride, axis)
