"""The class weights' optimisers, for any block of classes: SGD with momentum, and AdamW.

Both as PyTorch has them. SGD's weight decay is part of the gradient and so enters the momentum;
AdamW's moves the weights by itself, at the learning rate (Loshchilov & Hutter, ICLR 2019).

C classes, S sub-centres of a class, D embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class ClassWeights(NamedTuple):
    """Classes, those of a device or a block of them.

    Attributes:
      weight: float32 [C, S, D], of any norm: what is compared is the direction.
      momentum: float32 [C, S, D], SGD's; AdamW's first moment.
      second: float32 [C, S, D], AdamW's second moment; None of SGD.
    """

    weight: jax.Array
    momentum: jax.Array
    second: jax.Array | None = None


class Sgd(NamedTuple):
    """v ← μ v + (∇ + λ w), w ← w − η v, where ∇ may come in several parts (gradient accumulation).

    The momentum itself accumulates the parts: it decays before the first, and the weights move
    after the last.

    Attributes:
      rate: η, scalar.
      momentum: μ.
      weight_decay: λ.
      is_first: bool scalar, whether this is ∇'s first part.
      is_last: bool scalar, whether it is the last.
    """

    rate: jax.Array
    momentum: float
    weight_decay: float
    is_first: jax.Array
    is_last: jax.Array

    def step(self, old: ClassWeights, gradient: jax.Array) -> ClassWeights:
        """The classes after a part of their gradient, [C, S, D]."""
        gradient = gradient + jnp.where(self.is_first, self.weight_decay * old.weight, 0.0)
        v = jnp.where(self.is_first, self.momentum * old.momentum, old.momentum) + gradient
        return ClassWeights(old.weight - jnp.where(self.is_last, self.rate, 0.0) * v, v)


class AdamW(NamedTuple):
    """m ← β₁ m + (1 − β₁) ∇, v ← β₂ v + (1 − β₂) ∇², w ← w − η (m̂ / (√v̂ + ε) + λ w).

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ). ∇ is whole: of parts, ∇² could not be summed up.

    Attributes:
      rate: η, scalar.
      weight_decay: λ.
      count: int32 scalar, t: 1 at the first step.
    """

    rate: jax.Array
    weight_decay: float
    count: jax.Array

    def step(self, old: ClassWeights, gradient: jax.Array) -> ClassWeights:
        """The classes after their gradient, [C, S, D]."""
        t = self.count.astype(jnp.float32)
        m = BETAS[0] * old.momentum + (1 - BETAS[0]) * gradient
        v = BETAS[1] * old.second + (1 - BETAS[1]) * jnp.square(gradient)
        root = jnp.sqrt(v / (1 - jnp.float32(BETAS[1]) ** t))
        step = m / (1 - jnp.float32(BETAS[0]) ** t) / (root + EPSILON)
        return ClassWeights(old.weight - self.rate * (step + self.weight_decay * old.weight), m, v)


# PyTorch's defaults, of the backbone's AdamW too.
BETAS, EPSILON = (0.9, 0.999), 1e-8
