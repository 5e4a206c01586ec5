"""The tile engine: the cosines of two sides' faces, and every method's rule on them.

A tile is one matrix product. Its cosines serve all methods, each of which then costs an elementwise
rule on them. The tiles of a set of faces have one shape, so that nothing compiles anew from tile to
tile; what runs over an end is padded or taken twice, and left out by whoever takes the tile. All
pairs, 1:N search, distractors and pairs of videos are consumers: they differ in which tiles they
ask for, and in what they keep of them.

m rows, n columns, N faces, S numbers a face, D embedding.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.metrics.roc import SplitScores
from ida_jax.ops.products import row_products
from ida_jax.rescoring.terms import RULES, FaceTerms

_ROWS = 512
_MOST_PAIRS = 500_000_000


class Side(NamedTuple):
    """One side of a tile.

    Attributes:
      faces: float32 [n, D], unit rows.
      terms: {method: its numbers of the n faces}.
    """

    faces: jax.Array
    terms: Mapping[str, FaceTerms]


class PairTile(NamedTuple):
    """Rows of the matrix of all pairs.

    Attributes:
      genuine: the places of its genuine pairs in the flattened tile, ascending.
      impostor: bool [m, N], its impostor pairs.
      scores: (method, float32 [m, N]) of each method in turn.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    scores: Iterator[tuple[Hashable, np.ndarray]]


@partial(jax.jit, static_argnames="precision")
def cosines(rows: jax.Array, columns: jax.Array, *, precision: str = "float32") -> jax.Array:
    """⟨f, g⟩ of faces [m, D] and [n, D], float32 [m, n]; see `ops.products`."""
    return row_products(rows, columns, precision=precision)


@partial(jax.jit, static_argnums=2)
def cosine_rows(faces: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """The cosines of `count` faces from `first` on with all N faces, float32 [count, N]."""
    return cosines(lax.dynamic_slice_in_dim(faces, first, count), faces)


@partial(jax.jit, static_argnames="enrolled")
def rule_scores(
    cosine: jax.Array, rows: FaceTerms, columns: FaceTerms, *, enrolled: str = "rows"
) -> jax.Array:
    """A method's scores of a tile, float32 [m, n].

    Args:
      cosine: [m, n]; or what takes the cosine's place.
      rows: the method's numbers of the m faces.
      columns: of the n faces.
      enrolled: "rows" or "columns", the side whose face is the first of the rule.
    """
    first, second = rows.values[:, None, :], columns.values[None, :, :]
    if enrolled == "columns":
        first, second = second, first
    return RULES[rows.rule].score(cosine, first, second, rows.constants)


def tile_scores(
    rows: Side, columns: Side, *, enrolled: str = "rows"
) -> Iterator[tuple[str, jax.Array]]:
    """(method, its scores [m, n]) of each method of the sides; as `rule_scores`."""
    cosine = cosines(rows.faces, columns.faces)
    for name, terms in rows.terms.items():
        yield name, rule_scores(cosine, terms, columns.terms[name], enrolled=enrolled)


def all_pair_tiles(
    similarities: Callable[[int, int], jax.Array | np.ndarray],
    labels: np.ndarray,
    methods: Mapping[Hashable, FaceTerms],
    *,
    rows: int | None = None,
) -> Iterator[PairTile]:
    """All pairs (i, j), i < j, each once, by tiles of `rows` rows in ascending order.

    Args:
      similarities: (first, m) → float32 [m, N], as `cosine_rows`, or what takes the cosines'
        place; columns ≤ the row are not looked at.
      labels: [N], the faces' identities.
      methods: {method: its numbers of the faces}.
      rows: m, where there are as many faces; 512 if None.
    """
    n = len(labels)
    rows = max(1, min(rows or _ROWS, n))
    on_device = {name: jax.device_put(terms) for name, terms in methods.items()}
    for start in progress_bar(
        range(0, n, rows), desc="all pairs", unit="block", delay=2, leave=False
    ):
        first = min(start, n - rows)
        own = np.arange(first, first + rows)
        # Each pair once (row < column), and no row that the tile before has done.
        wanted = (own[:, None] < np.arange(n)[None, :]) & (own >= start)[:, None]
        same = labels[own][:, None] == labels[None, :]
        scores = _scores_of_rows(similarities(first, rows), on_device, first, rows)
        yield PairTile(np.flatnonzero(wanted & same), wanted & ~same, scores)


def _scores_of_rows(
    cosine: jax.Array | np.ndarray, methods: Mapping[Hashable, FaceTerms], first: int, rows: int
) -> Iterator[tuple[Hashable, np.ndarray]]:
    for name, terms in methods.items():
        yield name, np.asarray(rule_scores(cosine, take_rows(terms, first, rows), terms))


def split_all_pairs(
    similarities: Callable[[int, int], jax.Array | np.ndarray],
    labels: np.ndarray,
    methods: Mapping[str, FaceTerms],
    *,
    rows: int | None = None,
) -> dict[str, SplitScores]:
    """{method: its scores of all pairs (i, j), i < j}.

    Args:
      similarities, labels, methods, rows: as in `all_pair_tiles`.
    """
    counts = pair_counts(labels)
    if sum(counts) > _MOST_PAIRS:
        raise UserError(
            f"{len(labels):,} faces make {sum(counts):,} pairs, more than the {_MOST_PAIRS:,} that "
            "fit in memory: take fewer faces, or score a list of pairs (score_pairs; "
            "--protocol=pairs)"
        )
    splits = {name: SplitScores(*(np.empty(c, np.float32) for c in counts)) for name in methods}
    genuine = impostor = slice(0, 0)
    for tile in all_pair_tiles(similarities, labels, methods, rows=rows):
        genuine = slice(genuine.stop, genuine.stop + len(tile.genuine))
        impostor = slice(impostor.stop, impostor.stop + np.count_nonzero(tile.impostor))
        for name, scores in tile.scores:
            splits[name].genuine[genuine] = scores.ravel()[tile.genuine]
            splits[name].impostor[impostor] = scores[tile.impostor]
    return splits


def take_rows(terms: FaceTerms, first: int | jax.Array, count: int) -> FaceTerms:
    """The terms of `count` faces from `first` on, which may be traced."""
    return terms._replace(values=lax.dynamic_slice_in_dim(terms.values, first, count))


def checked_labels(labels: ArrayLike, faces: int) -> np.ndarray:
    """The labels as an array, refused where they are not one per face."""
    labels = np.asarray(labels)
    if labels.shape != (faces,):
        raise UserError(f"{labels.size} labels for {faces} faces: expected one each")
    return labels


def pair_counts(labels: np.ndarray) -> tuple[int, int]:
    """The numbers of genuine and of impostor pairs among all pairs of the faces."""
    n = len(labels)
    _, counts = np.unique(labels, return_counts=True)
    genuine = int(np.sum(counts * (counts - 1)) // 2)
    return genuine, n * (n - 1) // 2 - genuine
