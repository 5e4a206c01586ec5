"""What the bootstrap needs of scored pairs: the genuine ones, and the highest impostors.

P pairs, I units (identities or templates) numbered 0 … I − 1, G genuine and n impostor pairs, m of
them kept, U sides of a pair, R resamples, N faces.

A resample draws units with replacement, unit a coming w_a times. With U = 2 a pair of a and b then
counts w_a · w_b times, and w_a times where both sides are a; with U = 1 (a search, by its probe) it
counts w_a times. Only the highest impostors decide the thresholds, so only those are kept; of the
others a resample needs no more than their weight in all, which the totals here give.

The totals are wᵀCw, C the counts of pairs by units, once for all methods, so that 1,000 resamples
of 15.7 M pairs take seconds. A threshold that falls out of the tail raises, and the caller starts
again with the whole list.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import accepted_impostors

# Lists up to this long are kept whole: a few units may then weigh anything in a resample.
_WHOLE = 1 << 20
_SPARE = 1 << 17
# Whole numbers below it are exact in float32, which halves what a sparse product reads.
_EXACT_FLOAT32 = 1 << 24

Total = Callable[[np.ndarray], np.ndarray]


class Tail(NamedTuple):
    """One method's scores, as far as the bootstrap needs them.

    Attributes:
      genuine: [G] scores, in any order, without NaN.
      genuine_units: int32 [G, U], the units of each pair's sides.
      impostor: [m], the m highest impostor scores, descending.
      impostor_units: int32 [m, U].
      impostors: n, the number of impostor pairs in all.
    """

    genuine: np.ndarray
    genuine_units: np.ndarray
    impostor: np.ndarray
    impostor_units: np.ndarray
    impostors: int


class Rows(NamedTuple):
    """Both faces of pairs, int64 [P] each, first < second."""

    first: np.ndarray
    second: np.ndarray


def tail(scores: ArrayLike, same: ArrayLike, units: ArrayLike, *, highest_far: float) -> Tail:
    """The tail of scores in one list; NaN counts as −∞.

    Args:
      scores: [P].
      same: bool [P], True for a genuine pair.
      units: int [P, U], each pair's units, from 0.
      highest_far: the highest FAR that will be asked for; see `tail_depth`.

    Raises:
      UserError: lengths that differ, units of another shape or below 0, no pairs of a kind.
    """
    scores, same, units = np.asarray(scores), np.asarray(same, bool), np.asarray(units)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise UserError(
            f"scores of shape {scores.shape} and labels of shape {same.shape} were given, expected "
            "one score and one label for each pair"
        )
    require_units(units, scores.size)
    genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
    return split_tail(
        scores[genuine],
        scores[impostor],
        genuine_units=units[genuine],
        impostor_units=lambda kept: units[impostor[kept]],
        highest_far=highest_far,
    )


def split_tail(
    genuine: np.ndarray,
    impostor: np.ndarray,
    *,
    genuine_units: np.ndarray,
    impostor_units: Callable[[np.ndarray], np.ndarray],
    highest_far: float,
) -> Tail:
    """`tail` of scores split by label, whose impostors' units are asked for only where kept.

    Args:
      genuine: [G] scores.
      impostor: [n] scores, in any order.
      genuine_units: int [G, U].
      impostor_units: the units int [m, U] of the impostors at m positions.
      highest_far: as in `tail`.

    Raises:
      UserError: no pairs of a kind.
    """
    for kind, of in (("genuine", genuine), ("impostor", impostor)):
        if not of.size:
            raise UserError(f"0 {kind} pairs were given, at least 1 is needed: check the labels")
    kept = _highest(impostor, tail_depth(highest_far, impostor.size))
    return Tail(
        _without_nan(genuine),
        genuine_units.astype(np.int32),
        _without_nan(impostor[kept]),
        impostor_units(kept).astype(np.int32),
        impostor.size,
    )


def tail_depth(highest_far: float, impostors: int) -> int:
    """How many of n impostors to keep: 2·⌊f·n⌋ + 131,072, and all of up to 1,048,576.

    A resample's threshold lies at rank ⌊f·W⌋ of the weighted list, W being all pairs' weight in it.
    It is among the m highest unless those lost half of their share of W. With so many pairs there
    are over a thousand units, and only ones that hold a large part of the whole tail, drawn too
    rarely, could do that. The bootstrap then raises `bootstrap.ShortTail`; it never answers with
    the tail's end.
    """
    if impostors <= _WHOLE:
        return impostors
    return min(impostors, 2 * accepted_impostors(highest_far, impostors) + _SPARE)


def pair_list_total(units: ArrayLike, *, count: int) -> Total:
    """The total weight of listed impostor pairs in each resample.

    With C the pairs counted by their units, W = Σ_{a≠b} C_ab w_a w_b + Σ_a C_aa w_a.

    Args:
      units: int [n, U].
      count: I.

    Returns:
      A function of the weights [I, R] of R resamples, whole numbers: float64 [R], exact.

    Raises:
      UserError: units of another shape, or outside 0 … I − 1.
    """
    from scipy.sparse import csr_array

    units = np.asarray(units)
    require_units(units, len(units), count=count)
    alone = units[:, 0] == units[:, -1]
    single = np.bincount(units[alone, 0], minlength=count).astype(np.float64)
    if alone.all():
        return lambda weights: single @ weights
    first, second = (units[~alone, side].astype(np.int32) for side in (0, 1))
    pairs = csr_array((np.ones(first.size, np.float32), (first, second)), shape=(count, count))
    most = float(pairs.sum(axis=1, dtype=np.float64).max())

    def total(weights: np.ndarray) -> np.ndarray:
        exact = np.float32 if most * weights.max(initial=0) < _EXACT_FLOAT32 else np.float64
        partners = pairs.astype(exact, copy=False) @ weights.astype(exact)
        return single @ weights + np.einsum("ir,ir->r", weights, partners, dtype=np.float64)

    return total


def all_pairs_total(labels: ArrayLike) -> Total:
    """The total weight of all impostor pairs of N labelled faces, in closed form.

    With n_a faces of unit a: W = ½ ((Σ_a n_a w_a)² − Σ_a (n_a w_a)²).

    Args:
      labels: int [N], the faces' units, from 0.

    Returns:
      As `pair_list_total`.
    """
    faces = np.bincount(np.asarray(labels)).astype(np.float64)

    def total(weights: np.ndarray) -> np.ndarray:
        drawn = faces[:, None] * weights
        return (drawn.sum(axis=0) ** 2 - np.square(drawn).sum(axis=0)) / 2

    return total


def impostor_rows(labels: ArrayLike, positions: ArrayLike) -> Rows:
    """The faces of impostor pairs among all pairs (i, j), i < j, of N faces, i ascending, then j.

    Args:
      labels: int [N].
      positions: int [P], places in that order of the pairs of two labels.
    """
    positions = np.asarray(positions)
    order, group, rank = _by_label(labels)
    n = order.size
    later_mates = np.bincount(group)[group] - 1 - rank
    ends = np.cumsum(n - 1 - np.arange(n) - later_mates)
    first = np.searchsorted(ends, positions, side="right")
    place = positions - (ends[first] - (n - 1 - first - later_mates[first]))
    # The place-th column after i that is no mate of i lies behind as many mates s, of rank q among
    # their own, as have s − q ≤ place + i − q_i; in order of label all s − q ascend.
    steps = group[order] * (n + 1) + order - rank[order]
    wanted = group[first] * (n + 1) + place + first - rank[first]
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    passed = np.searchsorted(steps, wanted, side="right") - (starts[group] + rank + 1)[first]
    return Rows(first, first + 1 + place + passed)


def genuine_rows(labels: ArrayLike, positions: ArrayLike) -> Rows:
    """`impostor_rows` of the pairs of one label."""
    positions = np.asarray(positions)
    order, group, rank = _by_label(labels)
    later_mates = np.bincount(group)[group] - 1 - rank
    ends = np.cumsum(later_mates)
    first = np.searchsorted(ends, positions, side="right")
    place = positions - (ends[first] - later_mates[first])
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    return Rows(first, order[(starts[group] + rank + 1)[first] + place])


def require_units(units: np.ndarray, pairs: int, *, count: int | None = None) -> None:
    """Refuses units that are no integers [P, 1] or [P, 2], or lie outside 0 … I − 1."""
    shaped = units.ndim == 2 and len(units) == pairs and units.shape[1] in (1, 2)
    if not shaped or not np.issubdtype(units.dtype, np.integer):
        raise UserError(
            f"units are {units.dtype} {list(units.shape)}: expected integers [{pairs}, 1] or "
            f"[{pairs}, 2], those of each pair's sides"
        )
    if units.size and (units.min() < 0 or (count is not None and units.max() >= count)):
        raise UserError(
            f"units lie between {units.min()} and {units.max()}: expected them numbered from 0"
            + ("" if count is None else f" to {count - 1}")
        )


def _by_label(labels: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The faces in order of label; each face's label numbered from 0; its rank within its label."""
    _, group = np.unique(np.asarray(labels), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max(initial=-1) + 1))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size) - starts[group[order]]
    return order, group, rank


def _highest(scores: np.ndarray, depth: int) -> np.ndarray:
    """The places of the `depth` highest scores, descending, NaN the lowest."""
    if depth == scores.size:
        return np.argsort(-_without_nan(scores), kind="stable")
    scores = _without_nan(scores)
    lowest = np.partition(scores, scores.size - depth)[scores.size - depth]
    above = np.flatnonzero(scores > lowest)
    level = np.flatnonzero(scores == lowest)[: depth - above.size]
    kept = np.concatenate([above, level])
    return kept[np.argsort(-scores[kept], kind="stable")]


def _without_nan(scores: np.ndarray) -> np.ndarray:
    """Floating scores with −∞ for NaN; the array itself where it has none."""
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    bad = np.isnan(scores)
    return np.where(bad, -np.inf, scores).astype(scores.dtype) if bad.any() else scores
