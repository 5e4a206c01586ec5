"""SGD and AdamW, and their learning rates, as the paper and InsightFace train (section 4.1).

Clipping considers the backbone's gradient alone, as in InsightFace: the class weights' gradient is
applied block by block, so that its norm is known only afterwards.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ida_jax.ops.class_optimizers import BETAS, EPSILON

SCHEDULES = ("steps", "linear", "polynomial")
OPTIMIZERS = ("sgd", "adamw")


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate of step 0, 1, … as float32.

    "steps" (the paper): `learning_rate`, times `decay_factor` from each of `decay_steps` on.
    "linear" (InsightFace's arcface_torch): from `learning_rate` to 0 at `steps`. "polynomial":
    likewise, the line to the power `power` (2 in arcface_torch's former PolyScheduler). All rise
    from 0 during the first `warmup_steps`, of which step s has (s + 1) / warmup_steps of the rate;
    the decay to 0 begins after them. arcface_torch's warm-up is one step behind, s / warmup_steps,
    except that it takes its first step at the full rate; without warm-up the two are the same.
    Its PolyScheduler is a step behind throughout, and takes its first rate twice.
    """
    decays = np.asarray(config.decay_steps, np.int32)
    rates = config.learning_rate * config.decay_factor ** np.arange(len(decays) + 1)
    warmup, total = config.get("warmup_steps", 0), config.steps

    def schedule(step: jax.Array) -> jax.Array:
        taken = jnp.asarray(step, jnp.int32)
        if config.get("schedule", "steps") in ("linear", "polynomial"):
            left = (total - taken).astype(jnp.float32) / max(1, total - warmup)
            left = jnp.clip(left, 0.0, 1.0)
            power = config.power if config.schedule == "polynomial" else 1.0
            rate = config.learning_rate * (left if power == 1 else left**power)
        else:
            # optax's own piecewise schedule mixes types, which strict promotion rejects.
            rate = jnp.asarray(rates, jnp.float32)[jnp.sum(jnp.asarray(decays) <= taken)]
        if warmup:
            rate = rate * jnp.minimum(1.0, (taken + 1).astype(jnp.float32) / warmup)
        return rate

    return schedule


def sgd(config: ConfigDict) -> optax.GradientTransformation:
    """SGD with momentum μ and weight decay λ on every parameter, in PyTorch's order.

    v ← μ v + (∇ + λ w), w ← w − η v, with η from `learning_rate_schedule`.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate_schedule(config), momentum=config.momentum),
    )


def is_adamw(config: ConfigDict) -> bool:
    """Whether AdamW is the section's optimiser; sections of earlier versions have SGD."""
    return config.get("optimizer") == "adamw"


def adamw(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW as PyTorch has it, with its β and ε (`ida_jax.ops.class_optimizers`).

    Its weight decay λ, on every parameter as in arcface_torch, moves w by −η λ w apart from the
    moments.
    """
    plain = optax.adamw(
        learning_rate_schedule(config), *BETAS, eps=EPSILON, weight_decay=config.weight_decay
    )

    def update(*args: Any) -> tuple:
        # optax's 1 − βᵗ mixes types, which strict promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            return plain.update(*args)

    return optax.GradientTransformation(plain.init, update)


def backbone_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """`sgd` or `adamw`, after clipping the gradient to the norm `clip_norm` if that is above 0.

    The norm is that of the backbone's gradient alone, as in InsightFace, which clips at 5.
    """
    optimizer = adamw(config) if is_adamw(config) else sgd(config)
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
