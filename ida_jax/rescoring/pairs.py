"""Scores of pairs: cosines first, then each method's rule on them.

A list of pairs in random order touches two far rows of the embeddings for each pair, and memory,
not arithmetic, sets its speed. On a CPU the pairs are therefore grouped by tiles of the N×N matrix:
where a tile has enough pairs, its whole product is cheaper than gathering their rows.

P pairs, N faces, D embedding, S numbers a face, T rows of a tile.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from ida_jax.errors import UserError
from ida_jax.rescoring.padding import block_size, padded
from ida_jax.rescoring.terms import FaceTerms, cosine_terms, pair_score
from ida_jax.validation import require_unit

# Tiles of 2048 × 2048: each takes 21 ms at D = 512 on two cores, a gathered pair 0.3 to 1 µs.
_TILE_BITS = 11
_CELLS_A_PAIR = 64
_MOST_SMALL_TILES = np.iinfo(np.int16).max
_RUN = 1 << 18
# Blocks come in few sizes, so that no count of pairs compiles anew and few pairs cost little. On a
# CPU the gathered rows of a block must stay in cache: at 16,384 pairs each costs six times as much.
_GATHER_BLOCKS = (64, 2048)
_DEVICE_GATHER_BLOCKS = (64, 4096, 131072)
_RULE_BLOCKS = (64, 4096, 65536, 1 << 20)
# Pairs grouped at once: about 0.5 GiB of working memory.
CHUNK = 1 << 24
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
    scores = _cosines(faces, pairs)
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
    labels = np.asarray(labels)
    n = len(faces)
    if labels.shape != (n,):
        raise UserError(f"{labels.size} labels for {n} faces: expected one each")
    if n * (n - 1) // 2 > _MOST_PAIRS:
        raise UserError(
            f"{n:,} faces make {n * (n - 1) // 2:,} pairs, more than the {_MOST_PAIRS:,} that are "
            "kept in memory: take fewer images an identity (eval_data.images_per_identity)"
        )
    on_device, values = jax.device_put(faces), jax.device_put(terms.values)
    block = max(1, min(_ROW_BLOCK, n))
    genuine, impostor = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for start in tqdm(range(0, n, block), desc="all pairs", unit="block", delay=2, leave=False):
        first = min(start, n - block)
        tile = _score_rows(terms.rule, block, on_device, values, first, terms.constants)
        tile = np.asarray(tile)
        rows = np.arange(first, first + block)
        # Each pair once (row < column), and no row that the tile before has done.
        wanted = (rows[:, None] < np.arange(n)[None, :]) & (rows >= start)[:, None]
        same = labels[rows][:, None] == labels[None, :]
        genuine.append(tile[wanted & same])
        impostor.append(tile[wanted & ~same])
    return SplitScores(np.concatenate(genuine), np.concatenate(impostor))


def _cosines(faces: jax.Array, pairs: np.ndarray) -> np.ndarray:
    n = faces.shape[0]
    bits = min(_TILE_BITS, max(0, n - 1).bit_length())
    tiles = -(-n >> bits)
    worth = max(1, int(4**bits / _CELLS_A_PAIR))
    fits = tiles * tiles <= np.iinfo(np.int32).max  # else no tile has pairs enough anyway
    if jax.default_backend() != "cpu" or len(pairs) < worth or not fits:
        return _gathered(faces, pairs)
    host = np.asarray(faces)  # no copy on a CPU
    with ThreadPoolExecutor() as pool:
        grouped = _grouped(pairs, bits, tiles, pool)
        cosines = np.empty(len(pairs), np.float32)
        product = np.empty((1 << bits, 1 << bits), np.float32)
        sparse = []
        for tile, start, stop in zip(*(x.tolist() for x in grouped.runs), strict=True):
            run = slice(start, stop)
            if run.stop - run.start < worth:
                sparse.append(run)
                continue
            left, right = (host[i << bits : (i + 1) << bits] for i in divmod(tile, tiles))
            # BLAS: XLA's product takes about 1.2 times as long on a CPU.
            np.matmul(left, right.T, out=product[: len(left), : len(right)])
            np.take(product.reshape(-1), grouped.cell[run], out=cosines[run], mode="clip")
        if sparse:
            rows = np.concatenate([grouped.order[run] for run in sparse])
            found = _gathered(faces, pairs[rows])
            start = 0
            for run in sparse:
                cosines[run] = found[start : (start := start + run.stop - run.start)]
        back = np.empty_like(cosines)

        def put_back(run: slice) -> None:
            back[grouped.order[run]] = cosines[run]

        list(pool.map(put_back, _slices(len(pairs))))
    return back


class _Grouped(NamedTuple):
    """Pairs in the order of their tiles.

    Attributes:
      order: int64 [P], their places in the list.
      cell: int32 [P], each one's cell of its tile.
      runs: the tiles that have pairs, where each one's begin and where they end.
    """

    order: np.ndarray
    cell: np.ndarray
    runs: tuple[np.ndarray, np.ndarray, np.ndarray]


def _grouped(pairs: np.ndarray, bits: int, tiles: int, pool: ThreadPoolExecutor) -> _Grouped:
    # Sixteen bits are sorted by radix, many times faster.
    small = tiles * tiles <= _MOST_SMALL_TILES
    tile = np.empty(len(pairs), np.int16 if small else np.int32)
    cell = np.empty(len(pairs), np.int32)
    inside = (1 << bits) - 1

    def locate(run: slice) -> None:
        # The product is symmetric: only the tiles on and above the diagonal are computed.
        low = np.minimum(pairs[run, 0], pairs[run, 1])
        high = np.maximum(pairs[run, 0], pairs[run, 1])
        tile[run] = (low >> bits) * tiles + (high >> bits)
        cell[run] = ((low & inside) << bits) | (high & inside)

    list(pool.map(locate, _slices(len(pairs))))
    order = np.argsort(tile, kind="stable" if small else "quicksort")
    ordered = np.empty_like(cell)

    def arrange(run: slice) -> None:
        np.take(cell, order[run], out=ordered[run], mode="clip")

    list(pool.map(arrange, _slices(len(pairs))))
    tile = tile[order]
    starts = np.flatnonzero(np.concatenate([[True], tile[1:] != tile[:-1]]))
    return _Grouped(order, ordered, (tile[starts], starts, np.append(starts[1:], len(tile))))


def _slices(count: int) -> list[slice]:
    """Runs that fit into cache, for threads."""
    return [slice(start, start + _RUN) for start in range(0, count, _RUN)]


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
