"""Networks' variables without their own initialisation, which takes seconds to compile."""

from functools import partial

import jax
import numpy as np


def shapes_of(network, size=112):
    """Shapes and types of a network's variables on images of size × size pixels."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)


def drawn_variables(network, shape, *, seed=0):
    """Every weight and statistic of a network on images of `shape`, drawn.

    None is hidden by its initial 0 or 1, and outputs are about as large as with the network's own.
    """
    images = jax.ShapeDtypeStruct((1, *shape[1:]), np.float32)
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        values = rng.uniform(0.3, 0.9, leaf.shape)
        if path[-1].key in ("bias", "mean"):
            values = values - 0.6
        elif path[-1].key == "kernel":
            values = (values - 0.6) * np.sqrt(33 / np.prod(leaf.shape[:-1]))
        return np.float32(values)

    return jax.tree_util.tree_map_with_path(drawn, dict(shapes))
