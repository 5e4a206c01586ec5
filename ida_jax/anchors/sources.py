"""Where anchors come from: Table 4's sources.

A anchors, C classes, N faces, D embedding.
"""

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.data.dataset import first_of_each_identity
from ida_jax.errors import UserError


def class_weights(
    weights: np.ndarray, *, size: int, fingerprint: str = "", seed: int = 0, k: int = 10,
    tau: float = 1.0,
) -> AnchorSet:  # fmt: skip
    """Anchors from the margin head's weights [C, D], "weights of FC layers" in Table 4.

    A weight stands for its class's centre; its label is the class.

    Args:
      weights: [C, D], rows of any norm.
      size: at most so many are kept, drawn without replacement from `seed` (paper: 50,000).
    """
    rows = _sample(len(weights), size, seed)
    return AnchorSet.from_embeddings(
        weights[rows], labels=rows, source="class_weights", fingerprint=fingerprint, k=k, tau=tau
    )


def real_db_rows(labels: np.ndarray, *, size: int, seed: int = 0) -> np.ndarray:
    """Rows of the real-db's images: one an identity, its first (section 4.5 samples it randomly).

    Args:
      labels: int [N], identities.
      size: at most so many identities are kept, drawn without replacement from `seed`.

    Returns:
      int64 [A], ascending.
    """
    rows = first_of_each_identity(labels)
    return rows[_sample(len(rows), size, seed)]


def _sample(available: int, size: int, seed: int) -> np.ndarray:
    if size < 1:
        raise UserError(f"an anchor set of {size} was asked for: expected at least 1")
    if size >= available:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).choice(available, size, replace=False))
