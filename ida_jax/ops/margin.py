"""Margin losses on cosines: ArcFace, CosFace, L2-softmax, and the cross-entropy over them.

B batch, C classes. c is a cosine, θ = arccos c; y is a row's label, s the scale, m the margin.

A label outside 0 … C−1 (−1 for a row that only pads the batch) belongs to no class: that row gets
no margin, and its cross-entropy means nothing and must be masked. No error can be raised here,
inside a compiled function: whoever makes the batch checks its labels.

Classes may be sharded over devices: the label's column is found by comparing with an index, an
elementwise operation, and leaves as a sum over C, so that devices exchange [B] numbers only.
"""

import math

import jax
import jax.numpy as jnp


def arcface_logits(
    cosines: jax.Array, labels: jax.Array, *, scale: float = 64.0, margin: float = 0.5
) -> jax.Array:
    """s · cos(θ + m) at the label, s · cos θ elsewhere (ArcFace; the paper's section 3.1).

    With c = cos θ, cos(θ + m) = c · cos m − √(1 − c²) · sin m. It would rise again for
    θ + m > π; there, for c < −cos m, the logit continues as s · (c − m · sin m), which falls
    with θ throughout.

    The gradient by c is the exact one of these formulas: s · (cos m + c · sin m / √(1 − c²)), and s
    beyond the border. It grows without bound towards c = 1 (1.4e3 · s at the float32 before 1),
    where the gradient of c by the embedding vanishes as fast. At c = 1 itself, and outside [−1, 1],
    the root's part is left out: the gradient is s · cos m there. At the border c = −cos m the
    formula's own value, 0, holds. At c = −1 it is s.

    Args:
      cosines: [B, C], in [−1, 1].
      labels: int [B].
      scale: s.
      margin: m in radians, 0 ≤ m < π/2.

    Returns:
      float32 [B, C].
    """
    cosines = cosines.astype(jnp.float32)
    is_label = _is_label(cosines, labels)
    c = _at_label(cosines, is_label)
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
    return scale * jnp.where(is_label, with_margin[:, None], cosines)


def cosface_logits(
    cosines: jax.Array, labels: jax.Array, *, scale: float = 64.0, margin: float = 0.35
) -> jax.Array:
    """s · (cos θ − m) at the label, s · cos θ elsewhere (CosFace, Wang et al., CVPR 2018).

    Args:
      cosines: [B, C], in [−1, 1].
      labels: int [B].
      scale: s.
      margin: m ≥ 0, a difference of cosines.

    Returns:
      float32 [B, C].
    """
    cosines = cosines.astype(jnp.float32)
    return scale * jnp.where(_is_label(cosines, labels), cosines - margin, cosines)


def l2_softmax_logits(cosines: jax.Array, *, scale: float) -> jax.Array:
    """s · cos θ: the L2-constrained softmax (Ranjan et al., 2017; "L2-Face"), its α as s.

    The class weights are normalised as well, as the other two losses have them.

    Args:
      cosines: [B, C], in [−1, 1].
      scale: α, the radius of the hypersphere.

    Returns:
      float32 [B, C].
    """
    return scale * cosines.astype(jnp.float32)


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
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    return log_sum - _at_label(shifted, _is_label(shifted, labels))


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """bool [B, C], True in the label's column. XLA fuses it into its use: it takes no memory."""
    classes = jnp.arange(logits.shape[1], dtype=labels.dtype)
    return labels[:, None] == classes[None, :]


def _at_label(values: jax.Array, is_label: jax.Array) -> jax.Array:
    """[B], the label's value; 0 where no column is the label's."""
    return jnp.sum(jnp.where(is_label, values, 0.0), axis=-1)
