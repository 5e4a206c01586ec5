"""Margin losses as functions of the label's cosine, and the cross-entropy over all classes.

B batch, C classes. c is a cosine, θ = arccos c; y is a row's label, s the scale, m the margin.

A margin changes the label's logit alone, every other one is s · c: each loss here takes the labels'
cosines [B] and gives their logits [B], so that no [B, C] tensor is needed to apply one. All compute
in float32, and every gradient is finite for c in [−1, 1], the ends included.

A label outside 0 … C−1 (−1 for a row that only pads the batch) belongs to no class: that row gets
no margin, and its cross-entropy means nothing and must be masked. No error can be raised here,
inside a compiled function: whoever makes the batch checks its labels.

Classes may be sharded over devices: the label's column is found by comparing with an index, an
elementwise operation, and leaves as a sum over C, so that devices exchange [B] numbers only.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def arcface(
    cosines: jax.Array, *, scale: float, margin: float, straight_through: bool = False
) -> jax.Array:
    """s · cos(θ + m) (ArcFace, Deng et al., CVPR 2019; the paper's section 3.1).

    With c = cos θ, cos(θ + m) = c · cos m − √(1 − c²) · sin m. It would rise again for
    θ + m > π; there, for c < −cos m, the logit continues as s · (c − m · sin m), which falls
    with θ throughout.

    The gradient by c is the exact one of these formulas: s · (cos m + c · sin m / √(1 − c²)), and s
    beyond the border. It grows without bound towards c = 1 (1.4e3 · s at the float32 before 1),
    where the gradient of c by the embedding vanishes as fast. At c = 1 itself, and outside [−1, 1],
    the root's part is left out: the gradient is s · cos m there. At the border c = −cos m the
    formula's own value, 0, holds. At c = −1 it is s.

    Args:
      cosines: [B], in [−1, 1].
      scale: s.
      margin: m in radians, 0 ≤ m < π/2.
      straight_through: the same logit with InsightFace's gradient, s everywhere: its code takes
        arccos and cos in place, unseen by the differentiation. Its logit itself has no continuation
        for θ + m > π, where it rises again.

    Returns:
      float32 [B].
    """
    c = cosines.astype(jnp.float32)
    # 1 − c² loses its digits near c = ±1; this product does not.
    sine_squared = (1.0 - c) * (1.0 + c)
    inside = sine_squared > 0.0
    # √ has an infinite derivative at 0: where that is not wanted, √1 is differentiated instead.
    sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, sine_squared, 1.0)), 0.0)
    with_margin = jnp.where(
        c >= -math.cos(margin),
        c * math.cos(margin) - sine * math.sin(margin),
        c - margin * math.sin(margin),
    )
    if straight_through:
        with_margin = c + lax.stop_gradient(with_margin - c)
    return scale * with_margin


def cosface(cosines: jax.Array, *, scale: float, margin: float) -> jax.Array:
    """s · (cos θ − m) (CosFace, Wang et al., CVPR 2018), float32 [B]; m ≥ 0."""
    return scale * (cosines.astype(jnp.float32) - margin)


def l2_softmax(cosines: jax.Array, *, scale: float) -> jax.Array:
    """s · cos θ, float32 [B]: the L2-constrained softmax (Ranjan et al., 2017; "L2-Face").

    s is its α, the radius of the hypersphere. The class weights are normalised as well, as the
    other losses have them.
    """
    return scale * cosines.astype(jnp.float32)


def sphereface(cosines: jax.Array, *, scale: float, margin: int) -> jax.Array:
    """s · ψ(θ), ψ(θ) = (−1)ᵏ cos(mθ) − 2k for θ in [kπ/m, (k+1)π/m] (A-Softmax).

    Source: SphereFace (Liu et al., CVPR 2017), with the embedding normalised and scaled by s where
    the article keeps its norm. The article also begins training with (λ cos θ + ψ) / (1 + λ) and
    lets λ fall; that annealing is not here.

    ψ is continuous and falls with θ throughout. cos(mθ) is the Chebyshev polynomial Tₘ(c), so the
    gradient needs no arccos: it is exact and at most s · m².

    Args:
      cosines: [B], in [−1, 1].
      scale: s.
      margin: m, a whole number ≥ 1.

    Returns:
      float32 [B].
    """
    c = cosines.astype(jnp.float32)
    before, chebyshev = jnp.ones_like(c), c
    for _ in range(margin - 1):
        before, chebyshev = chebyshev, 2.0 * c * chebyshev - before
    borders = jnp.array([math.cos(j * math.pi / margin) for j in range(1, margin)], jnp.float32)
    k = jnp.sum(c[:, None] < borders[None, :], axis=1)
    return scale * (jnp.where(k % 2 == 0, chebyshev, -chebyshev) - 2.0 * k.astype(jnp.float32))


def combined(
    cosines: jax.Array,
    *,
    scale: float,
    margins: tuple[float, float, float],
    straight_through: bool = False,
) -> jax.Array:
    """s · (cos(m₁θ + m₂) − m₃), the combined margin (ArcFace, section 2.3).

    InsightFace's arcface_torch has only two cases of its margin_list: (1, m₂, 0) is `arcface`, by
    its own gradient, and wherever m₃ > 0 it drops m₁ and m₂ and takes `cosface` with m₃. It refuses
    the rest.

    (1, m, 0) is ArcFace and (1, 0, m) CosFace, exactly. With m₁ = 1, θ + m₂ > π is treated as in
    `arcface`. With another m₁ the logit continues from −1 − m₃ in steps of c where m₁θ + m₂ > π, so
    that it falls with θ throughout; its gradient at c = 1, without bound beside it, is 0.

    Args:
      cosines: [B], in [−1, 1].
      scale: s.
      margins: (m₁, m₂, m₃): m₁ > 0 a factor, 0 ≤ m₂ < π/2 in radians, m₃ ≥ 0 a difference of
        cosines.
      straight_through: `arcface`'s, for m₁ = 1 and m₃ = 0 alone.

    Returns:
      float32 [B].
    """
    m1, m2, m3 = margins
    if m1 == 1:
        with_angle = arcface(cosines, scale=scale, margin=m2, straight_through=straight_through)
        return with_angle - scale * m3
    c = cosines.astype(jnp.float32)
    border = math.cos(min((math.pi - m2) / m1, math.pi))
    with_margin = jnp.where(c >= border, jnp.cos(m1 * _angle(c) + m2), c - border - 1.0)
    return scale * (with_margin - m3)


# AdaFace's code keeps cosines and angles this far from their ends.
_ADAFACE_EPS = 1e-3


def adaface(cosines: jax.Array, quality: jax.Array, *, scale: float, margin: float) -> jax.Array:
    """s · (cos(θ − m·q) − m − m·q) (AdaFace, Kim et al., CVPR 2022).

    q = −1, the poorest images, is ArcFace's margin; q = 0 CosFace's; q = 1 a negative angular
    margin, which emphasises hard samples. As in the authors' code, c is clipped to ±(1 − 1e-3) and
    θ − m·q to [1e-3, π − 1e-3]: beyond, the gradient is 0.

    Args:
      cosines: [B], in [−1, 1].
      quality: [B], q in [−1, 1] from `adaface_quality`, without a gradient.
      scale: s.
      margin: m, 0 ≤ m < π/2; the article has 0.4.

    Returns:
      float32 [B].
    """
    c = jnp.clip(cosines.astype(jnp.float32), -1.0 + _ADAFACE_EPS, 1.0 - _ADAFACE_EPS)
    quality = lax.stop_gradient(quality.astype(jnp.float32))
    angle = jnp.clip(_angle(c) - margin * quality, _ADAFACE_EPS, math.pi - _ADAFACE_EPS)
    return scale * (jnp.cos(angle) - margin - margin * quality)


class NormStatistics(NamedTuple):
    """Running mean and deviation of the embeddings' norms, float32 scalars."""

    mean: jax.Array
    std: jax.Array


class Quality(NamedTuple):
    """Image quality q, float32 [B] in [−1, 1], and the statistics that it was judged by."""

    quality: jax.Array
    statistics: NormStatistics


def initial_norm_statistics() -> NormStatistics:
    """Those that AdaFace's code begins with: mean 20, deviation 100."""
    return NormStatistics(jnp.float32(20.0), jnp.float32(100.0))


def adaface_quality(
    norms: jax.Array, statistics: NormStatistics, *, mask: jax.Array | None = None
) -> Quality:
    """q = clip((‖z‖ − mean) / (std + 1e-3) · 0.333, −1, 1), without a gradient (AdaFace).

    Norms are clipped to [0.001, 100]. The statistics first move by 0.01 towards this batch's mean
    and (unbiased) deviation, over the whole batch even where it is sharded over devices. With one
    real row the deviation stays, with none both do.

    Args:
      norms: [B], of the embeddings as the backbone gives them.
      statistics: before this batch.
      mask: bool [B], False for rows that only pad the batch: they move no statistic.

    Returns:
      `Quality`, with the statistics after this batch.
    """
    norms = jnp.clip(lax.stop_gradient(norms.astype(jnp.float32)), 1e-3, 100.0)
    real = jnp.ones(norms.shape, bool) if mask is None else mask
    count = jnp.sum(real.astype(jnp.float32))
    mean = jnp.sum(jnp.where(real, norms, 0.0)) / jnp.maximum(count, 1.0)
    squares = jnp.sum(jnp.where(real, jnp.square(norms - mean), 0.0))
    std = jnp.sqrt(squares / jnp.maximum(count - 1.0, 1.0))
    statistics = NormStatistics(
        jnp.where(count > 0, 0.99 * statistics.mean + 0.01 * mean, statistics.mean),
        jnp.where(count > 1, 0.99 * statistics.std + 0.01 * std, statistics.std),
    )
    quality = (norms - statistics.mean) / (statistics.std + _ADAFACE_EPS) * 0.333
    return Quality(jnp.clip(quality, -1.0, 1.0), statistics)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """−log softmax(z)_y = log Σⱼ exp(zⱼ − z_y), a row at a time (the paper's Eq. 3).

    Args:
      logits: [B, C].
      labels: int [B].

    Returns:
      float32 [B], not reduced. Finite but meaningless where the label is outside 0 … C−1.
    """
    logits = logits.astype(jnp.float32)
    # Less the maximum first: the two terms then do not cancel where the label already has it.
    shifted = logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    return log_sum - at_label(shifted, labels)


def at_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The label's value in each row of [B, C]: [B], 0 where the label is of no class."""
    return jnp.sum(jnp.where(_is_label(values, labels), values, 0.0), axis=-1)


def replace_at_label(values: jax.Array, labels: jax.Array, new: jax.Array) -> jax.Array:
    """[B, C] with the label's value in each row replaced by `new`, [B]."""
    return jnp.where(_is_label(values, labels), new[:, None], values)


def _is_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """bool [B, C], True in the label's column. XLA fuses it into its use: it takes no memory."""
    classes = jnp.arange(values.shape[1], dtype=labels.dtype)
    return labels[:, None] == classes[None, :]


def _angle(c: jax.Array) -> jax.Array:
    """θ = arccos c, to float32's last digits near c = ±1 too; its gradient is 0 at c = ±1."""
    inside = (1.0 - c) * (1.0 + c) > 0.0
    within = jnp.where(inside, c, 0.0)
    angle = 2.0 * jnp.arctan2(jnp.sqrt(1.0 - within), jnp.sqrt(1.0 + within))
    return jnp.where(inside, angle, jnp.where(c > 0.0, 0.0, math.pi))
