"""Dynamic loss scaling, without which small gradients of float16 activations become 0.

The backward pass is of the loss times S, and its gradients are divided by S in float32. S halves
where they overflow, and that step changes nothing else; after `PATIENCE` steps without, it doubles.

Source: Micikevicius et al., Mixed Precision Training, ICLR 2018; the constants and the rule are
those of PyTorch's `torch.amp.GradScaler`, with which arcface_torch trains. Flax's `DynamicScale`
wraps `jax.value_and_grad`, and doubles a step later: here the margin head takes its own step
between the two passes, and several parts of a batch overflow together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

INITIAL, PATIENCE = 2.0**16, 2000


class LossScale(NamedTuple):
    """What the scaling carries from step to step.

    Attributes:
      scale: float32 scalar, S of the next step.
      finite: int32 scalar, steps without overflow since S was changed.
      skipped: int32 scalar, steps that overflowed, of all.
    """

    scale: jax.Array
    finite: jax.Array
    skipped: jax.Array


def initial_loss_scale() -> LossScale:
    """S = 2¹⁶."""
    return LossScale(jnp.float32(INITIAL), jnp.int32(0), jnp.int32(0))


def adjusted(state: LossScale, finite: jax.Array) -> LossScale:
    """After a step whose gradients were finite, or not (bool scalar)."""
    steps = jnp.where(finite, state.finite + 1, 0)
    grown = steps == PATIENCE
    factor = jnp.where(finite, jnp.where(grown, jnp.float32(2), 1), 0.5)
    return LossScale(
        state.scale * factor,
        jnp.where(grown, 0, steps),
        state.skipped + jnp.where(finite, jnp.int32(0), 1),
    )
