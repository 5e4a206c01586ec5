"""The optimiser of the paper's experiments (section 4.1), for the backbone and the SSR module."""

import optax
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """`learning_rate`, times `decay_factor` from each of `decay_steps` on."""
    return optax.piecewise_constant_schedule(
        config.learning_rate, dict.fromkeys(config.decay_steps, config.decay_factor)
    )


def sgd(config: ConfigDict) -> optax.GradientTransformation:
    """SGD with momentum μ and weight decay λ on every parameter, in PyTorch's order.

    v ← μ v + (∇ + λ w), w ← w − η v, with η from `learning_rate_schedule`.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate_schedule(config), momentum=config.momentum),
    )
