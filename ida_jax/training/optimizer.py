"""The optimiser of the paper's experiments (section 4.1), for the backbone and the SSR module."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """`learning_rate`, times `decay_factor` from each of `decay_steps` on."""
    decays = np.asarray(config.decay_steps, np.int32)
    rates = config.learning_rate * config.decay_factor ** np.arange(len(decays) + 1)

    def schedule(step: jax.Array) -> jax.Array:
        # optax's own piecewise schedule mixes types, which strict promotion refuses.
        return jnp.asarray(rates, jnp.float32)[jnp.sum(jnp.asarray(decays) <= step)]

    return schedule


def sgd(config: ConfigDict) -> optax.GradientTransformation:
    """SGD with momentum μ and weight decay λ on every parameter, in PyTorch's order.

    v ← μ v + (∇ + λ w), w ← w − η v, with η from `learning_rate_schedule`.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate_schedule(config), momentum=config.momentum),
    )
