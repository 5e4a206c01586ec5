"""Scores of listed pairs and of all pairs: cosines first, then each method's rule on them.

A listed pair in random order touches two far rows of the embeddings, and memory, not arithmetic,
sets the speed. On a CPU pairs are therefore grouped by tile of the N×N matrix of products; a tile
with enough of them is computed as one product, which costs less than gathering their rows. The
other pairs' rows are gathered. On other devices one program gathers the rows and applies every
method's rule, so that of a pair only its two numbers go there and its scores come back.

P pairs, N faces, D embedding, S numbers a face.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from ida_jax.common.devices import block_size, by_blocks, filled, on_cpu, padded
from ida_jax.common.errors import UserError
from ida_jax.common.processes import cores
from ida_jax.common.validation import require_unit
from ida_jax.metrics.roc import SplitScores
from ida_jax.rescoring.terms import RULES, FaceTerms, cosine_terms
from ida_jax.rescoring.tiles import checked_labels, cosine_rows, split_all_pairs

# Blocks come in few sizes, so that no count of pairs compiles anew and few pairs cost little. On a
# CPU the gathered rows of a block must stay in cache: at 16,384 pairs each costs six times as much.
_GATHER_BLOCKS = (64, 2048)
DEVICE_GATHER_BLOCKS = (64, 4096, 131072)
RULE_BLOCKS = (64, 4096, 65536, 1 << 20)
# Pairs grouped at once: about 0.5 GiB of working memory.
CHUNK = 1 << 24
# Tiles of 2048 × 2048: each takes 21 ms at D = 512 on two cores, a gathered pair 0.3 to 1 µs.
_TILE_BITS = 11
_CELLS_A_PAIR = 64
# Sixteen bits are sorted by radix, many times faster.
_MOST_SMALL_TILES = np.iinfo(np.int16).max
# Pairs that one thread locates at once, in cache.
_RUN = 1 << 18
_MOST_THREADS = 8


class Subset(NamedTuple):
    """Which of N faces are held, where some are.

    Attributes:
      rows: int64 [n], ascending.
      place: int32 [N], where each of these is among them.
    """

    rows: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, used: np.ndarray) -> "Subset | None":
        """The faces that are marked in bool [N]; None where all are."""
        if used.all():
            return None
        rows = np.flatnonzero(used)
        place = np.zeros(len(used), np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        return cls(rows, place)


def score_pairs(faces: np.ndarray, pairs: np.ndarray, terms: FaceTerms | None = None) -> np.ndarray:
    """One score a pair, float32 [P].

    Args:
      faces: float32 [N, D], unit rows.
      pairs: int [P, 2], rows of `faces`; the first is the enrolled face where the method cares.
      terms: the method's numbers of the faces; the cosine if None.

    Raises:
      UserError: rows that are not unit-norm, pairs that are not rows of them, terms of other faces.
    """
    faces = require_unit(faces)
    terms = cosine_terms(len(faces)) if terms is None else terms
    terms.check(len(faces))
    return pair_scores(faces, checked_pairs(pairs, len(faces)), {"": terms})[""]


def pair_scores(
    faces: np.ndarray, pairs: np.ndarray, methods: Mapping[str, FaceTerms]
) -> dict[str, np.ndarray]:
    """{method: `score_pairs`} of what was checked before; the cosines are computed once."""
    on_device, pairs = jax.device_put(filled(faces)), pairs.astype(np.int32, copy=False)
    if not on_cpu(on_device):
        return _gathered_scores(on_device, pairs, methods)
    cosines = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        cosines[start : start + CHUNK] = _cosines(on_device, len(faces), chunk, chunk)
    return {name: scores_of_cosines(cosines, pairs, terms) for name, terms in methods.items()}


def score_chunk(
    faces: jax.Array, pairs: np.ndarray, terms: FaceTerms, held: Subset | None = None
) -> np.ndarray:
    """`score_pairs` of one chunk without its checks, the faces on the device.

    The scores are a function of the chunk alone, to the last bit, whichever other faces are held.
    Rows of NaN give NaN scores.

    Args:
      faces: float32 [N, D] on the device, or `filled`; [n, D] of the faces that are held.
      pairs: int32 [P, 2] within 0 … N−1, of faces that are held.
      terms: of the N faces, or of those that are held.
      held: which of the N faces they are; all if None.
    """
    places = pairs if held is None else held.place[pairs]
    if not on_cpu(faces):
        return _gathered_scores(faces, places, {"": terms})[""]
    cosines = _cosines(faces, len(terms.values), pairs, places, held)
    return scores_of_cosines(cosines, places, terms)


def _gathered_scores(
    faces: jax.Array, pairs: np.ndarray, methods: Mapping[str, FaceTerms]
) -> dict[str, np.ndarray]:
    own = {name: _filled(terms) for name, terms in methods.items()}
    scores = by_blocks(partial(gathered_scores, faces, own), pairs, sizes=DEVICE_GATHER_BLOCKS)
    return {name: scores[name] for name in methods}  # jax sorts a dict's keys


def _filled(terms: FaceTerms) -> FaceTerms:
    """The terms on the device, of as many faces as `filled` gives."""
    return jax.device_put(terms._replace(values=filled(np.asarray(terms.values))))


def score_gathered(faces: jax.Array, pairs: np.ndarray, terms: FaceTerms) -> np.ndarray:
    """`score_chunk` by blocks of one size and without products of tiles.

    On a CPU a score then has the same bits whatever other pairs are scored with it.
    """
    count = max(len(pairs), _GATHER_BLOCKS[0] + 1)
    rows = padded(pairs, count)
    if not on_cpu(faces):
        return _gathered_scores(faces, rows, {"": terms})[""][: len(pairs)]
    return scores_of_cosines(_gathered(faces, rows), rows, terms)[: len(pairs)]


def scores_of_cosines(cosines: np.ndarray, pairs: np.ndarray, terms: FaceTerms) -> np.ndarray:
    """`score_pairs` from the pairs' cosines, which serve every method: float32 [P].

    Args:
      cosines: float32 [P], what `score_pairs` gives without terms.
      pairs: int32 [P, 2].
    """
    if terms.rule == "cosine":
        return cosines.copy()
    return by_blocks(partial(apply_rule, _filled(terms)), cosines, pairs, sizes=RULE_BLOCKS)


def compile_pairs(width: int, terms: FaceTerms, *, most: int) -> None:
    """Compiles all that `score_chunk` needs for 1 … `most` pairs, each of two faces of its own.

    Args:
      width: D.
      terms: of any faces, for their rule and its constants.
      most: at most 16,384, beyond which the faces' number is a shape of its own (`filled`).
    """
    faces = 64
    while True:
        on_device = jax.device_put(np.zeros((faces, width), np.float32))
        values = np.zeros((faces, terms.values.shape[1]), np.float32)
        own = jax.device_put(terms._replace(values=values))
        if not on_cpu(on_device):
            for block in _sizes_to(DEVICE_GATHER_BLOCKS, faces // 2):
                gathered_scores(on_device, {"": own}, np.zeros((block, 2), np.int32))
        else:
            for block in _sizes_to(_GATHER_BLOCKS, faces // 2):
                gathered_cosines(on_device, np.zeros((block, 2), np.int32))
        if on_cpu(on_device) and terms.rule != "cosine":
            for block in _sizes_to(RULE_BLOCKS, faces // 2):
                apply_rule(own, np.zeros(block, np.float32), np.zeros((block, 2), np.int32))
        if faces >= 2 * most:
            return
        faces *= 2


def compile_blocks(faces: jax.Array, terms: FaceTerms) -> None:
    """Compiles all that `score_chunk` needs for these faces, whatever the number of pairs."""
    own = _filled(terms)
    if not on_cpu(faces):
        for block in DEVICE_GATHER_BLOCKS:
            gathered_scores(faces, {"": own}, np.zeros((block, 2), np.int32))
        return
    for block in _GATHER_BLOCKS:
        gathered_cosines(faces, np.zeros((block, 2), np.int32))
    if terms.rule != "cosine":
        for block in RULE_BLOCKS:
            apply_rule(own, np.zeros(block, np.float32), np.zeros((block, 2), np.int32))


def _sizes_to(sizes: tuple[int, ...], rows: int) -> list[int]:
    """The blocks that may hold up to this many rows."""
    return [size for size in sizes if size <= block_size(sizes, rows)]


def checked_pairs(pairs: np.ndarray, faces: int) -> np.ndarray:
    """The pairs as an array, refused where they are not rows of that many faces."""
    try:
        pairs = np.asarray(pairs)
    except ValueError as error:  # rows that differ
        raise UserError(f"pairs are not an array: {error}; expected integers [P, 2]") from error
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
    faces: np.ndarray, labels: ArrayLike, terms: FaceTerms | None = None
) -> SplitScores:
    """The scores of all N(N−1)/2 pairs (i, j), i < j, by tiles of a product.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N], the faces' identities.
      terms: as in `score_pairs`.

    Raises:
      UserError: as `score_pairs`, a different number of labels, or more pairs than are kept in
        memory.
    """
    faces = require_unit(faces)
    terms = cosine_terms(len(faces)) if terms is None else terms
    terms.check(len(faces))
    return all_pair_scores(faces, labels, {"": terms})[""]


def all_pair_scores(
    faces: np.ndarray, labels: ArrayLike, methods: Mapping[str, FaceTerms]
) -> dict[str, SplitScores]:
    """{method: `score_all_pairs`} of what was checked before; the cosines are computed once."""
    cosines = partial(cosine_rows, jax.device_put(faces))
    return split_all_pairs(cosines, checked_labels(labels, len(faces)), methods)


def _cosines(
    faces: jax.Array,
    count: int,
    pairs: np.ndarray,
    places: np.ndarray,
    held: Subset | None = None,
) -> np.ndarray:
    """⟨f₁, f₂⟩ of pairs, float32 [P].

    Args:
      count: of the faces, those beyond which are filled in.
      places: int32 [P, 2], the pairs as rows of `faces`.
      held: as in `score_chunk`.
    """
    # In a CPU's memory: the host's view of the faces is not a copy.
    tiles = _Tiles(np.asarray(faces)[:count], held)
    return _tiled_cosines(tiles, pairs, lambda some: _gathered(faces, places[some]))


def _gathered(faces: jax.Array, pairs: np.ndarray) -> np.ndarray:
    return by_blocks(partial(gathered_cosines, faces), pairs, sizes=_GATHER_BLOCKS)


@jax.jit
def gathered_cosines(faces: jax.Array, pairs: jax.Array) -> jax.Array:
    """⟨f₁, f₂⟩ of pairs [P, 2] of the faces [N, D], float32 [P]."""
    return jnp.einsum(
        "pd,pd->p", faces[pairs[:, 0]], faces[pairs[:, 1]], precision=lax.Precision.HIGHEST
    )


@jax.jit
def apply_rule(terms: FaceTerms, cosine: jax.Array, pairs: jax.Array) -> jax.Array:
    """A method's scores, float32 [P], from the cosines [P] of pairs [P, 2]."""
    first, second = terms.values[pairs[:, 0]], terms.values[pairs[:, 1]]
    return RULES[terms.rule].score(cosine, first, second, terms.constants)


@jax.jit
def gathered_scores(
    faces: jax.Array, methods: Mapping[str, FaceTerms], pairs: jax.Array
) -> dict[str, jax.Array]:
    """{method: its scores, float32 [P]} of pairs [P, 2] of the faces [N, D], in one program."""
    cosines = gathered_cosines(faces, pairs)
    return {name: apply_rule(terms, cosines, pairs) for name, terms in methods.items()}


class _Tiles(NamedTuple):
    """The faces of a tile's side, as they are among all N: the tiles are cut by N alone.

    Attributes:
      faces: float32 [N, D], or [n, D] of those that are held.
      held: which these are; all if None.
    """

    faces: np.ndarray
    held: Subset | None

    @property
    def count(self) -> int:
        """N."""
        return len(self.faces if self.held is None else self.held.place)

    def side(self, number: int, bits: int) -> np.ndarray:
        """The faces of a side, those that are not held zeros."""
        first, last = number << bits, min(number + 1 << bits, self.count)
        if self.held is None:
            return self.faces[first:last]
        start, stop = np.searchsorted(self.held.rows, (first, last))
        if stop - start == last - first:
            return self.faces[start:stop]
        side = np.zeros((last - first, self.faces.shape[1]), np.float32)
        side[self.held.rows[start:stop] - first] = self.faces[start:stop]
        return side


def _tiled_cosines(
    faces: _Tiles, pairs: np.ndarray, gathered: Callable[[slice | np.ndarray], np.ndarray]
) -> np.ndarray:
    """⟨f₁, f₂⟩ of each pair, float32 [P]. They do not depend on the number of threads.

    Args:
      faces: all N.
      pairs: int32 [P, 2] within 0 … N−1.
      gathered: the cosines of some of the pairs, by their numbers: of those whose tiles have too
        few of them.
    """
    n = faces.count
    bits = min(_TILE_BITS, max(0, n - 1).bit_length())
    tiles = -(-n >> bits)
    worth = max(1, int(4**bits / _CELLS_A_PAIR))
    if len(pairs) < worth or tiles * tiles > np.iinfo(np.int32).max:
        return gathered(slice(None))
    threads = min(_MOST_THREADS, cores())
    ends = np.linspace(0, len(pairs), threads + 1).astype(int).tolist()
    runs = [slice(*run) for run in itertools.pairwise(ends)]
    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(lambda run: _Share(pairs[run], bits, tiles), runs))
        counts = Counter()
        for share in shares:
            counts.update({tile: stop - start for tile, (start, stop) in share.runs.items()})
        product = np.empty((1 << bits, 1 << bits), np.float32)
        cells, row = product.reshape(-1), -1
        for tile, count in sorted(counts.items()):
            if count >= worth:
                if row != tile // tiles:
                    row = tile // tiles
                    left = faces.side(row, bits)
                right = faces.side(tile % tiles, bits)
                # BLAS: XLA's product takes about 1.2 times as long on a CPU.
                np.matmul(left, right.T, out=product[: len(left), : len(right)])
                list(pool.map(lambda share, tile=tile: share.take(tile, cells), shares))
        for share, run in zip(shares, runs, strict=True):
            few = {tile for tile in share.runs if counts[tile] < worth}
            share.gather(few, lambda some, first=run.start: gathered(first + some))
        cosines = np.empty(len(pairs), np.float32)
        list(pool.map(lambda share, run: share.put_back(cosines[run]), shares, runs))
    return cosines


class _Share:
    """A thread's share of the pairs, in the order of their tiles.

    Attributes:
      order: int64 [P], the places in the list of the ordered ones.
      cell: int32 [P], each ordered one's cell of its tile.
      runs: where each tile's begin and end.
      cosines: float32 [P], of the ordered ones.
    """

    def __init__(self, pairs: np.ndarray, bits: int, tiles: int) -> None:
        small = tiles * tiles <= _MOST_SMALL_TILES
        tile = np.empty(len(pairs), np.int16 if small else np.int32)
        cell = np.empty(len(pairs), np.int32)
        inside = (1 << bits) - 1
        for start in range(0, len(pairs), _RUN):
            run = slice(start, start + _RUN)
            # The product is symmetric: only tiles on and above the diagonal are computed.
            low = np.minimum(pairs[run, 0], pairs[run, 1])
            high = np.maximum(pairs[run, 0], pairs[run, 1])
            tile[run] = (low >> bits) * tiles + (high >> bits)
            cell[run] = ((low & inside) << bits) | (high & inside)
        self.order = np.argsort(tile, kind="stable" if small else "quicksort")
        self.cell = cell[self.order]
        tile = tile[self.order]
        starts = np.flatnonzero(np.concatenate([[True], tile[1:] != tile[:-1]]))[: len(tile)]
        stops = [*starts[1:].tolist(), len(tile)]
        self.runs = dict(
            zip(tile[starts].tolist(), zip(starts.tolist(), stops, strict=False), strict=True)
        )
        self.cosines = np.empty(len(pairs), np.float32)

    def take(self, tile: int, cells: np.ndarray) -> None:
        """Takes this share's pairs of the tile from its product."""
        if tile in self.runs:
            run = slice(*self.runs[tile])
            np.take(cells, self.cell[run], out=self.cosines[run], mode="clip")

    def gather(self, tiles: set[int], gathered: Callable[[np.ndarray], np.ndarray]) -> None:
        """Computes the pairs of these tiles, in their order, which keeps near rows together.

        Args:
          gathered: the cosines of pairs, by their places in this share.
        """
        if not tiles:
            return
        places = np.concatenate([np.arange(*self.runs[tile]) for tile in sorted(tiles)])
        self.cosines[places] = gathered(self.order[places])

    def put_back(self, out: np.ndarray) -> None:
        """Writes the cosines in the list's order."""
        out[self.order] = self.cosines
