"""Scores of pairs: the cosine, or log-DAO once the faces' densities are known.

P pairs, N faces, D embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from ida_jax.errors import UserError
from ida_jax.ops.dao import log_dao
from ida_jax.validation import require_unit

_PAIR_BLOCK = 65536
_ROW_BLOCK = 512
_MOST_PAIRS = 500_000_000


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
    tau: float | None = None,
) -> np.ndarray:
    """One score a pair, float32 [P]: τ⟨f₁, f₂⟩ + log(F₁ + F₂), or ⟨f₁, f₂⟩ without densities.

    Args:
      faces: float32 [N, D], unit rows.
      pairs: int [P, 2], rows of `faces`.
      log_density: float32 [N], log F of each face; the score is then log-DAO (Eq. 4), and the
        cosine where it is None.
      tau: the τ that the densities were made with; needed with them.

    Raises:
      UserError: faces that are no unit rows, pairs that are no rows of them, densities of another
        number or without τ.
    """
    faces, log_density, tau = _checked(faces, log_density, tau)
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise UserError(
            f"pairs are {pairs.dtype} {list(pairs.shape)}: expected integers [P, 2], rows of faces"
        )
    outside = np.flatnonzero(np.any((pairs < 0) | (pairs >= len(faces)), axis=1))
    if outside.size:
        row = outside[0]
        raise UserError(
            f"pair {row} is ({pairs[row, 0]}, {pairs[row, 1]}), outside the {len(faces)} faces "
            f"(0 … {len(faces) - 1})"
        )
    on_device = jax.device_put(faces)
    density = None if log_density is None else jax.device_put(log_density)
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIR_BLOCK):
        block = pairs[start : start + _PAIR_BLOCK].astype(np.int32)
        padded = np.zeros((_PAIR_BLOCK, 2), np.int32)
        padded[: len(block)] = block
        out = _score_block(on_device, density, padded, tau)
        scores[start : start + _PAIR_BLOCK] = out[: len(block)]
    return scores


def score_all_pairs(
    faces: np.ndarray,
    labels: np.ndarray,
    *,
    log_density: np.ndarray | None = None,
    tau: float | None = None,
) -> SplitScores:
    """The scores of all N(N−1)/2 pairs, by tiles of a product. Arguments as in `score_pairs`.

    Args:
      labels: int [N], the faces' identities.

    Raises:
      UserError: as `score_pairs`, labels of another number, or more pairs than are kept in memory.
    """
    faces, log_density, tau = _checked(faces, log_density, tau)
    labels = np.asarray(labels)
    n = len(faces)
    if labels.shape != (n,):
        raise UserError(f"{labels.size} labels for {n} faces: expected one each")
    if n * (n - 1) // 2 > _MOST_PAIRS:
        raise UserError(
            f"{n:,} faces make {n * (n - 1) // 2:,} pairs, more than the {_MOST_PAIRS:,} that are "
            "kept in memory: take fewer images an identity (eval_data.images_per_identity)"
        )
    on_device = jax.device_put(faces)
    density = None if log_density is None else jax.device_put(log_density)
    block = max(1, min(_ROW_BLOCK, n))
    genuine, impostor = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for start in tqdm(range(0, n, block), desc="all pairs", unit="block", delay=2, leave=False):
        first = min(start, n - block)
        tile = np.asarray(_score_tile(on_device, density, first, tau, block))
        rows = np.arange(first, first + block)
        # Each pair once (row < column), and no row that the tile before has done.
        wanted = (rows[:, None] < np.arange(n)[None, :]) & (rows >= start)[:, None]
        same = labels[rows][:, None] == labels[None, :]
        genuine.append(tile[wanted & same])
        impostor.append(tile[wanted & ~same])
    return SplitScores(np.concatenate(genuine), np.concatenate(impostor))


def _checked(
    faces: np.ndarray, log_density: np.ndarray | None, tau: float | None
) -> tuple[np.ndarray, np.ndarray | None, np.float32]:
    faces = require_unit(faces)
    if log_density is None:
        return faces, None, np.float32(1)
    if tau is None:
        raise UserError("densities are given without tau: pass the τ that they were made with")
    log_density = np.asarray(log_density, np.float32)
    if log_density.shape != (len(faces),):
        raise UserError(f"{log_density.size} densities for {len(faces)} faces: expected one each")
    bad = np.flatnonzero(~np.isfinite(log_density))
    if bad.size:
        raise UserError(f"log F of face {bad[0]} is {log_density[bad[0]]}: expected finite numbers")
    return faces, log_density, np.float32(tau)


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
