"""Adaptive discriminator augmentation (ADA): changed images for a GAN's discriminator.

With few images a discriminator learns them by heart. ADA shows it real and generated images alike
only after random changes, each made with a probability p that follows how far it overfits. A
generator does not learn the changes as long as p is well below 1.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data" (NeurIPS 2020),
appendix B, with the strengths of its code (`AugmentPipe`, "bgc"). One deviation: their code samples
an image enlarged twice by a wavelet filter; ours samples the image itself, bilinearly, so that it
is a little softer after a rotation and coarser after a shrinking.

All movements of an image are one inverse matrix, sampled once with mirrored borders. On a GPU the
gradient's scatter has no fixed order: set `XLA_FLAGS=--xla_gpu_deterministic_ops=true` where a
resumed training must be the same to the bit.

B batch, R resolution.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Karras et al. (2020): "as long as p remains below 0.8, leaks are unlikely to happen in practice".
# Their code has no bound but that of a probability.
MAX_PROBABILITY = 0.8

_SHIFT = 0.125  # the largest shift by whole pixels, of R
_SCALE = 0.2  # standard deviation of log₂
_STRETCH = 0.2  # standard deviation of log₂
_DRIFT = 0.125  # standard deviation of a shift by parts of a pixel, of R
_BRIGHTNESS = 0.2  # standard deviation; images are −1 … 1
_CONTRAST = 0.5  # standard deviation of log₂
_SATURATION = 1.0  # standard deviation of log₂

_LUMA = np.outer([1, 1, 1, 0], [1, 1, 1, 0]).astype(np.float32) / np.float32(3)  # v·vᵀ


class Geometry(NamedTuple):
    """How each image is moved, in this order; an image without a change has the neutral value.

    Attributes:
      flip: float32 [B], 1 mirrors left and right.
      quarter_turns: float32 [B], 0 … 3.
      shift: float32 [B, 2], in whole pixels along x and y.
      scale: float32 [B], above 1 enlarges.
      angle_before: float32 [B], radians.
      stretch: float32 [B], of x; y has the inverse.
      angle_after: float32 [B], radians.
      drift: float32 [B, 2], in pixels along x and y.
    """

    flip: jax.Array
    quarter_turns: jax.Array
    shift: jax.Array
    scale: jax.Array
    angle_before: jax.Array
    stretch: jax.Array
    angle_after: jax.Array
    drift: jax.Array


class Colours(NamedTuple):
    """How each image's colours change, in this order; float32 [B] each.

    Attributes:
      brightness: is added.
      contrast: multiplies.
      luma_flip: 1 mirrors at the plane through 0 that is normal to the luma axis v = (1, 1, 1)/√3.
      hue: radians around the luma axis.
      saturation: multiplies the distance from the luma axis.
    """

    brightness: jax.Array
    contrast: jax.Array
    luma_flip: jax.Array
    hue: jax.Array
    saturation: jax.Array


def augment(key: jax.Array, images: jax.Array, probability: jax.Array) -> jax.Array:
    """Images with ADA's changes, each made with the probability, independently of all others.

    Args:
      images: float32 [B, R, R, 3], about −1 … 1.
      probability: float32 scalar, p. At 0 the images come back as they are.

    Returns:
      float32 [B, R, R, 3], differentiable in the images.
    """
    batch, resolution = images.shape[:2]
    geometry, colours = draw_changes(key, batch, resolution, probability)
    changed = recolour(warp(images, geometry_matrices(geometry)), colour_matrices(colours))
    return jnp.where(probability > 0, changed, images)


def adapted_probability(
    probability: jax.Array,
    sign_of_real: jax.Array,
    *,
    target: float,
    images_seen: int,
    adjust_images: int,
) -> jax.Array:
    """p after one adjustment: upwards where the discriminator overfits, downwards elsewhere.

        p ← clip(p + sign(r − target) · images_seen / adjust_images, 0, MAX_PROBABILITY)

    Args:
      probability: float32 scalar, p.
      sign_of_real: float32 scalar, r = E[sign(D(real))] since the last adjustment (their r_t):
        0 where real and generated images look alike, 1 where real ones are known by heart.
      target: what r shall be; 0.6 in the article.
      images_seen: real images since the last adjustment.
      adjust_images: after how many p can go from 0 to 1; 500,000 in the article.

    Returns:
      float32 scalar.
    """
    step = jnp.float32(images_seen / adjust_images)
    moved = probability + jnp.sign(sign_of_real - jnp.float32(target)) * step
    return jnp.clip(moved, jnp.float32(0), jnp.float32(MAX_PROBABILITY))


def draw_changes(
    key: jax.Array, batch: int, resolution: int, probability: jax.Array
) -> tuple[Geometry, Colours]:
    """Draws how each image changes; a row of the batch depends on the key and its place alone.

    Args:
      batch: B.
      resolution: R, of which shifts are parts.
      probability: float32 scalar, p. An image is rotated before or after its stretching, or both,
        with p in all: 1 − √(1 − p) each.

    Returns:
      How images are moved, and how their colours change.
    """
    uniform_key, normal_key = jax.random.split(key)
    # Two draws for everything: each would be compiled by itself.
    u = iter(jax.random.uniform(uniform_key, (batch, 21)).T)
    normal = iter(jax.random.normal(normal_key, (batch, 7)).T)
    either = 1 - jnp.sqrt(jnp.clip(1 - probability, 0, 1))

    def drawn(values: jax.Array, neutral: float, chance: jax.Array = probability) -> jax.Array:
        return jnp.where(next(u) < chance, values, neutral)

    def drawn_pair(x: jax.Array, y: jax.Array) -> jax.Array:
        moved = next(u) < probability
        return jnp.where(moved[:, None], jnp.stack([x, y], axis=1) * resolution, 0)

    def angle() -> jax.Array:
        return (next(u) * 2 - 1) * math.pi

    def power(deviation: float) -> jax.Array:
        return jnp.exp2(next(normal) * deviation)

    geometry = Geometry(
        # A flip or a turn that is made may be none: no orientation is more frequent than the own.
        flip=drawn(jnp.floor(next(u) * 2), 0),
        quarter_turns=drawn(jnp.floor(next(u) * 4), 0),
        shift=jnp.round(drawn_pair(*((next(u) * 2 - 1) * _SHIFT for _ in range(2)))),
        scale=drawn(power(_SCALE), 1),
        angle_before=drawn(angle(), 0, either),
        stretch=drawn(power(_STRETCH), 1),
        angle_after=drawn(angle(), 0, either),
        drift=drawn_pair(*(next(normal) * _DRIFT for _ in range(2))),
    )
    colours = Colours(
        brightness=drawn(next(normal) * _BRIGHTNESS, 0),
        contrast=drawn(power(_CONTRAST), 1),
        luma_flip=drawn(jnp.floor(next(u) * 2), 0),
        hue=drawn(angle(), 0),
        saturation=drawn(power(_SATURATION), 1),
    )
    return geometry, colours


def geometry_matrices(geometry: Geometry) -> jax.Array:
    """The inverse of all movements: where in the old image a place of the new one comes from.

    Returns:
      float32 [B, 3, 3], applied to (x, y, 1) in pixels from the image's centre, y downwards.
    """
    flip, turns = 1 - 2 * geometry.flip, geometry.quarter_turns * jnp.float32(math.pi / 2)
    # cos π/2 is not quite 0 in float32: a turned image would be a little blurred.
    quarter = _rotation(jnp.round(jnp.cos(turns)), jnp.round(jnp.sin(turns)))
    inverses = [
        _scaling(flip, jnp.ones_like(flip)),
        quarter,
        _translation(-geometry.shift),
        _scaling(1 / geometry.scale, 1 / geometry.scale),
        _rotation(jnp.cos(geometry.angle_before), jnp.sin(geometry.angle_before)),
        _scaling(1 / geometry.stretch, geometry.stretch),
        _rotation(jnp.cos(geometry.angle_after), jnp.sin(geometry.angle_after)),
        _translation(-geometry.drift),
    ]
    return functools.reduce(_product, inverses)


def warp(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Images sampled bilinearly at moved places; outside an image lies its mirror image.

    The gradient adds up by a scatter, whose order on a GPU is not fixed unless XLA is asked to
    (`--xla_gpu_deterministic_ops`).

    Args:
      images: float32 [B, R, R, C], R at least 2.
      matrices: float32 [B, 3, 3] of `geometry_matrices`.

    Returns:
      float32 [B, R, R, C].
    """
    batch, size, _, channels = images.shape
    centre = (size - 1) / 2
    places = jnp.arange(size, dtype=jnp.float32) - centre
    to_x, to_y = places[None, None, :], places[None, :, None]

    def source(row: int) -> jax.Array:
        a, b, c = (matrices[:, row, column][:, None, None] for column in range(3))
        return _mirrored(a * to_x + b * to_y + (c + centre), size)

    x, y = source(0), source(1)
    # The last place is the end of the last pair, so that both of a pair are always there.
    left, top = (jnp.minimum(jnp.floor(place), size - 2) for place in (x, y))
    right_part, low_part = (x - left)[..., None], (y - top)[..., None]
    pixels = images.reshape(batch, size * size, channels)
    first = (top.astype(jnp.int32) * size + left.astype(jnp.int32)).reshape(batch, -1, 1)

    def pixel(down: int, right: int) -> jax.Array:
        index = first + (down * size + right)
        taken = jnp.take_along_axis(pixels, index, axis=1, mode="promise_in_bounds")
        return taken.reshape(images.shape)

    upper = (1 - right_part) * pixel(0, 0) + right_part * pixel(0, 1)
    lower = (1 - right_part) * pixel(1, 0) + right_part * pixel(1, 1)
    return (1 - low_part) * upper + low_part * lower


def colour_matrices(colours: Colours) -> jax.Array:
    """All changes of colour as one map of (r, g, b, 1), the last one leftmost.

        saturation · hue · luma flip · contrast · brightness

    with v·vᵀ the projection on the luma axis v: the flip is I − 2·v·vᵀ, the saturation
    v·vᵀ + s·(I − v·vᵀ), and the hue Rodrigues' rotation around v.

    Returns:
      float32 [B, 4, 4].
    """
    luma = jnp.asarray(_LUMA)[None]
    identity = jnp.eye(4, dtype=jnp.float32)[None]
    brightness, contrast = colours.brightness, colours.contrast
    one, zero = jnp.ones_like(brightness), jnp.zeros_like(brightness)
    shift = _matrix(
        [one, zero, zero, brightness],
        [zero, one, zero, brightness],
        [zero, zero, one, brightness],
        [zero, zero, zero, one],
    )
    stretch = _matrix(
        [contrast, zero, zero, zero],
        [zero, contrast, zero, zero],
        [zero, zero, contrast, zero],
        [zero, zero, zero, one],
    )
    flip = identity - 2 * colours.luma_flip[:, None, None] * luma
    part = (1 - jnp.cos(colours.hue)) / 3
    along, across = jnp.cos(colours.hue) + part, jnp.sin(colours.hue) / jnp.float32(math.sqrt(3))
    hue = _matrix(
        [along, part - across, part + across, zero],
        [part + across, along, part - across, zero],
        [part - across, part + across, along, zero],
        [zero, zero, zero, one],
    )
    colourful = jnp.diag(jnp.asarray([1, 1, 1, 0], jnp.float32))[None] - luma
    saturation = identity + (colours.saturation - 1)[:, None, None] * colourful
    return functools.reduce(_product, [saturation, hue, flip, stretch, shift])


def recolour(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Every pixel (r, g, b) mapped by its image's matrix.

    Args:
      images: float32 [B, R, R, 3].
      matrices: float32 [B, 4, 4] of `colour_matrices`.

    Returns:
      float32 [B, R, R, 3], not clipped.
    """
    # Sums of products, not a matrix product: those are rounded to TF32 or bfloat16 on accelerators.
    columns = [matrices[:, None, None, :3, column] for column in range(4)]
    return sum(columns[c] * images[..., c : c + 1] for c in range(3)) + columns[3]


def _mirrored(places: jax.Array, size: int) -> jax.Array:
    """Places on a line, folded into 0 … size − 1 at its ends."""
    period = 2 * (size - 1)
    within = jnp.mod(places, period)
    return jnp.minimum(within, period - within)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _matrix(*rows: list[jax.Array]) -> jax.Array:
    """[B, n, n] from n rows of n entries, each [B]."""
    return jnp.stack([jnp.stack(row, axis=1) for row in rows], axis=1)


def _scaling(x: jax.Array, y: jax.Array) -> jax.Array:
    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    return _matrix([x, zero, zero], [zero, y, zero], [zero, zero, one])


def _rotation(cos: jax.Array, sin: jax.Array) -> jax.Array:
    one, zero = jnp.ones_like(cos), jnp.zeros_like(cos)
    return _matrix([cos, -sin, zero], [sin, cos, zero], [zero, zero, one])


def _translation(by: jax.Array) -> jax.Array:
    x, y = by[:, 0], by[:, 1]
    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    return _matrix([one, zero, x], [zero, one, y], [zero, zero, one])
