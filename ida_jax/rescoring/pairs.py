"""Scores of pairs: cosines first, then each method's rule on them.

P pairs, N faces, D embedding, S numbers a face.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from ida_jax.common.devices import block_size, padded
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_unit
from ida_jax.metrics.roc import SplitScores
from ida_jax.rescoring.terms import FaceTerms, cosine_terms, pair_score
from ida_jax.rescoring.tiles import tiled_cosines

# Blocks come in few sizes, so that no count of pairs compiles anew and few pairs cost little. On a
# CPU the gathered rows of a block must stay in cache: at 16,384 pairs each costs six times as much.
_GATHER_BLOCKS = (64, 2048)
_DEVICE_GATHER_BLOCKS = (64, 4096, 131072)
_RULE_BLOCKS = (64, 4096, 65536, 1 << 20)
# Pairs grouped at once: about 0.5 GiB of working memory.
CHUNK = 1 << 24
_ROW_BLOCK = 512
_MOST_PAIRS = 500_000_000


def score_pairs(faces: np.ndarray, pairs: np.ndarray, terms: FaceTerms | None = None) -> np.ndarray:
    """One score a pair, float32 [P].

    Args:
      faces: float32 [N, D], unit rows.
      pairs: int [P, 2], rows of `faces`; the first is the enrolled face where the method cares.
      terms: the method's numbers of the faces; the cosine if None.

    Raises:
      UserError: faces that are no unit rows, pairs that are no rows of them, terms of other faces.
    """
    faces = require_unit(faces)
    terms = cosine_terms(len(faces)) if terms is None else terms
    terms.check(len(faces))
    pairs = checked_pairs(pairs, len(faces))
    on_device = jax.device_put(faces)
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), CHUNK):
        chunk = slice(start, start + CHUNK)
        scores[chunk] = score_chunk(on_device, pairs[chunk].astype(np.int32, copy=False), terms)
    return scores


def score_chunk(faces: jax.Array, pairs: np.ndarray, terms: FaceTerms) -> np.ndarray:
    """`score_pairs` of one chunk without its checks, the faces on the device.

    The scores are a function of the chunk alone. Rows of NaN give NaN scores.

    Args:
      faces: float32 [N, D] on the device.
      pairs: int32 [P, 2] within 0 … N−1.
      terms: of the N faces.
    """
    return _ruled(_cosines(faces, pairs), pairs, terms)


def scores_of_cosines(cosines: np.ndarray, pairs: np.ndarray, terms: FaceTerms) -> np.ndarray:
    """`score_pairs` from the pairs' cosines, which serve every method: float32 [P].

    Args:
      cosines: float32 [P], what `score_pairs` gives without terms.
      pairs: int32 [P, 2].
      terms: the method's numbers of the faces.
    """
    return _ruled(cosines.copy(), pairs, terms)


def _ruled(scores: np.ndarray, pairs: np.ndarray, terms: FaceTerms) -> np.ndarray:
    """The method's scores, written over the cosines."""
    if terms.rule == "cosine":
        return scores
    values, constants = jax.device_put(terms.values), jax.device_put(terms.constants)
    block = block_size(_RULE_BLOCKS, len(pairs))
    for start in range(0, len(pairs), block):
        rows = slice(start, start + block)
        cosine, own = padded(scores[rows], block), padded(pairs[rows], block)
        scores[rows] = np.asarray(_apply_rule(terms.rule, cosine, values, own, constants))[
            : len(pairs) - start
        ]
    return scores


def checked_pairs(pairs: np.ndarray, faces: int) -> np.ndarray:
    """The pairs as an array, refused where they are no rows of so many faces."""
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise UserError(
            f"pairs are {pairs.dtype} {list(pairs.shape)}: expected integers [P, 2], rows of faces"
        )
    outside = np.flatnonzero(np.any((pairs < 0) | (pairs >= faces), axis=1))
    if outside.size:
        row = outside[0]
        raise UserError(
            f"pair {row} is ({pairs[row, 0]}, {pairs[row, 1]}), outside the {faces} faces "
            f"(0 … {faces - 1})"
        )
    return pairs


def score_all_pairs(
    faces: np.ndarray, labels: np.ndarray, terms: FaceTerms | None = None
) -> SplitScores:
    """The scores of all N(N−1)/2 pairs (i, j), i < j, by tiles of a product.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N], the faces' identities.
      terms: as in `score_pairs`.

    Raises:
      UserError: as `score_pairs`, labels of another number, or more pairs than are kept in memory.
    """
    faces = require_unit(faces)
    terms = cosine_terms(len(faces)) if terms is None else terms
    terms.check(len(faces))
    n = len(faces)
    on_device, values = jax.device_put(faces), jax.device_put(terms.values)
    rows = max(1, min(_ROW_BLOCK, n))

    def tile(first: int) -> np.ndarray:
        return np.asarray(_score_rows(terms.rule, rows, on_device, values, first, terms.constants))

    return split_all_pairs(tile, labels, faces=n, rows=rows)


def split_all_pairs(
    tile: Callable[[int], np.ndarray], labels: np.ndarray, *, faces: int, rows: int
) -> SplitScores:
    """The scores of all pairs (i, j), i < j, from the rows of their matrix.

    Args:
      tile: first → scores float32 [rows, N] of the faces from `first` on with all faces; those at
        columns ≤ the row are not looked at.
      labels: int [N], the faces' identities.
      faces: N.
      rows: at once, at most N.

    Raises:
      UserError: labels of another number, or more pairs than are kept in memory.
    """
    labels, n = np.asarray(labels), faces
    if labels.shape != (n,):
        raise UserError(f"{labels.size} labels for {n} faces: expected one each")
    if n * (n - 1) // 2 > _MOST_PAIRS:
        raise UserError(
            f"{n:,} faces make {n * (n - 1) // 2:,} pairs, more than the {_MOST_PAIRS:,} that are "
            "kept in memory: take fewer images an identity (eval_data.images_per_identity)"
        )
    genuine, impostor = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for start in tqdm(range(0, n, rows), desc="all pairs", unit="block", delay=2, leave=False):
        first = min(start, n - rows)
        scores = tile(first)
        own = np.arange(first, first + rows)
        # Each pair once (row < column), and no row that the tile before has done.
        wanted = (own[:, None] < np.arange(n)[None, :]) & (own >= start)[:, None]
        same = labels[own][:, None] == labels[None, :]
        genuine.append(scores[wanted & same])
        impostor.append(scores[wanted & ~same])
    return SplitScores(np.concatenate(genuine), np.concatenate(impostor))


def _cosines(faces: jax.Array, pairs: np.ndarray) -> np.ndarray:
    if jax.default_backend() != "cpu":
        return _gathered(faces, pairs)
    # On a CPU the host's view of the faces is no copy.
    return tiled_cosines(np.asarray(faces), pairs, partial(_gathered, faces))


def _gathered(faces: jax.Array, pairs: np.ndarray) -> np.ndarray:
    cosines = np.empty(len(pairs), np.float32)
    on_cpu = jax.default_backend() == "cpu"
    block = block_size(_GATHER_BLOCKS if on_cpu else _DEVICE_GATHER_BLOCKS, len(pairs))
    pending = None
    for start in range(0, len(pairs), block):
        out = _gather(faces, padded(pairs[start : start + block], block))
        # The block before is fetched while the device works on this one.
        if pending is not None:
            cosines[pending[0] : pending[0] + block] = pending[1]
        pending = (start, out)
    if pending is not None:
        cosines[pending[0] :] = np.asarray(pending[1])[: len(pairs) - pending[0]]
    return cosines


@jax.jit
def _gather(faces: jax.Array, pairs: jax.Array) -> jax.Array:
    return jnp.einsum(
        "pd,pd->p", faces[pairs[:, 0]], faces[pairs[:, 1]], precision=lax.Precision.HIGHEST
    )


@partial(jax.jit, static_argnums=(0,))
def _apply_rule(
    rule: str, cosine: jax.Array, values: jax.Array, pairs: jax.Array, constants: jax.Array
) -> jax.Array:
    return pair_score(rule, cosine, values[pairs[:, 0]], values[pairs[:, 1]], constants)


@partial(jax.jit, static_argnums=(0, 1))
def _score_rows(
    rule: str,
    rows: int,
    faces: jax.Array,
    values: jax.Array,
    first: jax.Array,
    constants: jax.Array,
) -> jax.Array:
    tile = lax.dynamic_slice_in_dim(faces, first, rows)
    cosine = jnp.matmul(tile, faces.T, precision=lax.Precision.HIGHEST)
    own = lax.dynamic_slice_in_dim(values, first, rows)
    return pair_score(rule, cosine, own[:, None, :], values[None, :, :], constants)
