"""log F of faces, searched among anchors (IDA-R); IDA-L's is `ida_jax.artefacts.ssr_module`.

N faces, A anchors, D embedding, K support.
"""

from functools import partial

import jax
import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.common.devices import by_blocks
from ida_jax.ops.dao import log_density

_BLOCKS = (64, 4096)


def searched_log_density(
    faces: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int | None = None,
    tau: float | None = None,
    labels: np.ndarray | None = None,
    searcher: str = "auto",
) -> np.ndarray:
    """IDA-R: log F(f, Ψ_f) with Ψ_f searched in the anchors (Algorithm 1).

    Args:
      faces: float32 [N, D], unit rows.
      anchors: where support sets are searched.
      k: the support set's size; the anchor set's own default if None.
      tau: τ; the anchor set's own default if None.
      labels: int [N], identities in the anchors' numbering, each excluded from its own support set.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Returns:
      float32 [N].
    """
    neighbours = support_sets(
        faces, anchors, k=anchors.k if k is None else k, labels=labels, searcher=searcher
    )
    return log_density_of(neighbours.similarities, tau=anchors.tau if tau is None else tau)


def log_density_of(similarities: np.ndarray, *, tau: float) -> np.ndarray:
    """log F of support sets' similarities [N, K], float32 [N], by blocks of few sizes."""
    return by_blocks(partial(_log_density, tau=np.float32(tau)), similarities, sizes=_BLOCKS)


@jax.jit
def _log_density(similarities: jax.Array, tau: jax.Array) -> jax.Array:
    return log_density(similarities, tau=tau)
