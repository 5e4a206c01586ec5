"""Scores of pairs: the cosine, or log-DAO once the faces' densities are known.

P pairs, N faces, D embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ida_jax.ops.dao import log_dao

_PAIR_BLOCK = 65536
_ROW_BLOCK = 512


class SplitScores(NamedTuple):
    """Scores of all pairs of a labelled set.

    Attributes:
      genuine: float32, pairs of one identity.
      impostor: float32, pairs of two.
    """

    genuine: np.ndarray
    impostor: np.ndarray


def score_pairs(
    faces: np.ndarray,
    pairs: np.ndarray,
    *,
    log_density: np.ndarray | None = None,
    tau: float = 1.0,
) -> np.ndarray:
    """One score a pair, float32 [P].

    Args:
      faces: float32 [N, D], unit rows.
      pairs: int [P, 2], rows of `faces`.
      log_density: float32 [N], log F of each face; the score is then log-DAO, and the cosine
        where it is None.
      tau: the densities' τ.
    """
    faces = jax.device_put(faces)
    density = None if log_density is None else jax.device_put(log_density)
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIR_BLOCK):
        block = pairs[start : start + _PAIR_BLOCK].astype(np.int32)
        padded = np.zeros((_PAIR_BLOCK, 2), np.int32)
        padded[: len(block)] = block
        out = _score_block(faces, density, padded, np.float32(tau))
        scores[start : start + _PAIR_BLOCK] = out[: len(block)]
    return scores


def score_all_pairs(
    faces: np.ndarray,
    labels: np.ndarray,
    *,
    log_density: np.ndarray | None = None,
    tau: float = 1.0,
) -> SplitScores:
    """The scores of all N(N−1)/2 pairs, by tiles of a product. Arguments as in `score_pairs`.

    Args:
      labels: int [N], the faces' identities.
    """
    n = len(faces)
    on_device = jax.device_put(faces)
    density = None if log_density is None else jax.device_put(log_density)
    block = min(_ROW_BLOCK, n)
    genuine, impostor = [], []
    for start in range(0, n, block):
        first = min(start, n - block)
        tile = np.asarray(_score_tile(on_device, density, first, np.float32(tau), block))
        rows = np.arange(first, first + block)
        # Each pair once (row < column), and no row that the tile before has done.
        wanted = (rows[:, None] < np.arange(n)[None, :]) & (rows >= start)[:, None]
        same = labels[rows][:, None] == labels[None, :]
        genuine.append(tile[wanted & same])
        impostor.append(tile[wanted & ~same])
    return SplitScores(np.concatenate(genuine), np.concatenate(impostor))


@jax.jit
def _score_block(
    faces: jax.Array, density: jax.Array | None, pairs: jax.Array, tau: jax.Array
) -> jax.Array:
    first, second = pairs[:, 0], pairs[:, 1]
    cosine = jnp.einsum("pd,pd->p", faces[first], faces[second], precision=lax.Precision.HIGHEST)
    if density is None:
        return cosine
    return log_dao(cosine, density[first], density[second], tau=tau)


@jax.jit(static_argnums=(4,))
def _score_tile(
    faces: jax.Array, density: jax.Array | None, first: jax.Array, tau: jax.Array, rows: int
) -> jax.Array:
    tile = lax.dynamic_slice_in_dim(faces, first, rows)
    cosine = jnp.matmul(tile, faces.T, precision=lax.Precision.HIGHEST)
    if density is None:
        return cosine
    own = lax.dynamic_slice_in_dim(density, first, rows)
    return log_dao(cosine, own[:, None], density[None, :], tau=tau)
