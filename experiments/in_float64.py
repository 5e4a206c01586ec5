"""A network's embeddings with every number in float64: a child process of parity_insightface.py.

Command: PYTHONPATH=. python experiments/in_float64.py WEIGHTS IMAGES.npy EMBEDDINGS.npy

IMAGES float [N, H, W, 3], normalised; EMBEDDINGS float64 [N, D], as the network gives them.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
# The networks name their type as jnp.float32: before they are imported it becomes the wider one.
jnp.float32 = jnp.float64

from ida_jax.artefacts.face_model import build_network  # noqa: E402
from ida_jax.interop.weights import import_model  # noqa: E402


def main(weights: str, images: str, output: str) -> None:
    model = import_model(weights)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.variables)
    network = build_network(model.network, model.network_options).clone(dtype=jnp.float64)

    @jax.jit
    def embed(variables: object, images: jax.Array) -> jax.Array:
        return network.apply(variables, images, train=False)

    given = jnp.asarray(np.load(images), jnp.float64)
    np.save(output, np.asarray(embed(variables, given)))


if __name__ == "__main__":
    main(*sys.argv[1:])
