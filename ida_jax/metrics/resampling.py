"""What one resample of scored pairs needs: its tail, its weights, and `roc`'s rule on both.

P pairs, I units (identities or templates) numbered 0 … I − 1, G genuine and n impostor pairs, m of
them kept, U sides of a pair, R resamples, F FARs, N faces.

A resample draws units with replacement, unit a coming w_a times. With U = 2 a pair of a and b then
counts w_a · w_b times, and w_a times where both sides are a; with U = 1 (a search, by its probe) it
counts w_a times. Only the highest impostors decide the thresholds, so only those are kept; of the
others a resample needs no more than their total weight, wᵀCw, C the counts of pairs by units: once
for all methods, so that 1,000 resamples of 15.7 M pairs take seconds. No pair is written out twice.
A threshold that falls out of the tail raises `ShortTail`, and the caller starts again with the
whole list.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
_BATCH = 64  # resamples drawn at once
_FIRST_BLOCK = 4096  # impostors weighed at once, at least

# The impostor pairs' total weight, float64 [R], from R resamples' weights [I, R].
Total = Callable[[np.ndarray], np.ndarray]
# The weights of pairs from start to stop in a resample: (its table of weights, start, stop).
Weights = Callable[[np.ndarray, int, int | None], np.ndarray]


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
      highest_far: the highest FAR of the bootstrap; see `tail_depth`.
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
    """`tail` of scores split by label, whose impostors' units are computed only where kept.

    Args:
      genuine: [G] scores.
      impostor: [n] scores, in any order.
      genuine_units: int [G, U].
      impostor_units: the units int [m, U] of the impostors at m positions.
      highest_far: as in `tail`.
    """
    for kind, given in (("genuine", genuine), ("impostor", impostor)):
        if not given.size:
            raise UserError(f"0 {kind} pairs were given, at least 1 is needed: check the labels")
    kept = highest_places(impostor, tail_depth(highest_far, impostor.size))
    return Tail(
        without_nan(genuine),
        genuine_units.astype(np.int32),
        without_nan(impostor[kept]),
        impostor_units(kept).astype(np.int32),
        impostor.size,
    )


def tail_depth(highest_far: float, impostors: int) -> int:
    """The number of the n impostors to keep: 2·⌊f·n⌋ + 131,072, and all of up to 1,048,576.

    A resample's threshold lies at rank ⌊f·W⌋ of the weighted list, W being all pairs' weight in it.
    It is among the m highest unless those lost half of their share of W. So large an n has
    over a thousand units, and only ones that hold a large part of the whole tail, drawn too rarely,
    could do that. `ShortTail` is then raised; the tail's end is never the answer.
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
    order, group, rank, starts = by_label(labels)
    n = order.size
    later_mates = np.bincount(group)[group] - 1 - rank
    ends = np.cumsum(n - 1 - np.arange(n) - later_mates)
    first = np.searchsorted(ends, positions, side="right")
    place = positions - (ends[first] - (n - 1 - first - later_mates[first]))
    # Before the place-th column after i that is not a mate of i come those mates s, of rank q among
    # their own, that have s − q ≤ place + i − q_i; in order of label all s − q ascend.
    steps = group[order] * (n + 1) + order - rank[order]
    wanted = group[first] * (n + 1) + place + first - rank[first]
    passed = np.searchsorted(steps, wanted, side="right") - (starts[group] + rank + 1)[first]
    return Rows(first, first + 1 + place + passed)


def genuine_rows(labels: ArrayLike, positions: ArrayLike) -> Rows:
    """`impostor_rows` of the pairs of one label."""
    positions = np.asarray(positions)
    order, group, rank, starts = by_label(labels)
    later_mates = np.bincount(group)[group] - 1 - rank
    ends = np.cumsum(later_mates)
    first = np.searchsorted(ends, positions, side="right")
    place = positions - (ends[first] - later_mates[first])
    return Rows(first, order[(starts[group] + rank + 1)[first] + place])


def require_units(units: np.ndarray, pairs: int, *, count: int | None = None) -> None:
    """Refuses units that are not integers [P, 1] or [P, 2], or lie outside 0 … I − 1."""
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


def by_label(labels: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The faces in order of label; their labels, from 0; their ranks within; the labels' starts."""
    _, group = np.unique(np.asarray(labels), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max(initial=-1) + 1))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size) - starts[group[order]]
    return order, group, rank, starts


def highest_places(scores: np.ndarray, depth: int) -> np.ndarray:
    """The places of the `depth` highest scores, descending, NaN the lowest."""
    if depth == scores.size:
        return np.argsort(-without_nan(scores), kind="stable")
    scores = without_nan(scores)
    lowest = np.partition(scores, scores.size - depth)[scores.size - depth]
    above = np.flatnonzero(scores > lowest)
    level = np.flatnonzero(scores == lowest)[: depth - above.size]
    kept = np.concatenate([above, level])
    return kept[np.argsort(-scores[kept], kind="stable")]


def without_nan(scores: np.ndarray) -> np.ndarray:
    """Floating scores with −∞ for NaN; the array itself where it has none."""
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    bad = np.isnan(scores)
    return np.where(bad, -np.inf, scores).astype(scores.dtype) if bad.any() else scores


class Draw(NamedTuple):
    """One resample.

    Attributes:
      genuine: the table in which genuine pairs look up their weights.
      impostor: the impostor pairs' table.
      impostors: the weight of all impostor pairs.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    impostors: int


def pair_weights(units: np.ndarray) -> Weights:
    """This module's rule for pairs of units int32 [P, U]: w_a · w_b, or w_a of a pair within a."""
    first, second = (np.ascontiguousarray(units[:, side]) for side in (0, -1))
    alone = np.flatnonzero(first == second)
    if alone.size == first.size:
        return lambda table, start, stop: table.take(first[start:stop])

    def weights(table: np.ndarray, start: int, stop: int | None) -> np.ndarray:
        product = table.take(first[start:stop])
        product *= table.take(second[start:stop])
        if alone.size:
            inside = alone[slice(*np.searchsorted(alone, (start, start + product.size)))]
            product[inside - start] = table[first[inside]]
        return product

    return weights


def draws_of_units(rng: np.random.Generator, units: int, total: Total) -> Iterator[Draw]:
    """Endless resamples of I units drawn with replacement."""
    for batch in unit_weights(rng, units):
        # float64 holds the whole numbers exactly, up to 2⁵³ pairs.
        totals = total(batch.T.astype(np.float64))
        for weights, impostors in zip(batch, totals, strict=True):
            yield Draw(weights, weights, int(impostors))


def unit_weights(rng: np.random.Generator, units: int) -> Iterator[np.ndarray]:
    """Endless batches int32 [R, I] of the number of times each unit was drawn."""
    while True:
        yield np.stack(
            [np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(_BATCH)]
        ).astype(np.int32)


def draws_of_pairs(
    rng: np.random.Generator, *, genuine: int, kept: int, impostors: int
) -> Iterator[Draw]:
    """Endless resamples of pairs, in which only the weights of `kept` of n impostors are drawn.

    The draws that fall on a subset of u of n pairs number Binomial(n, u/n), each of them uniform:
    the multinomial's exact marginal.
    """
    while True:
        count = rng.binomial(impostors, kept / impostors)
        others = np.bincount(rng.integers(kept, size=count), minlength=kept)
        own = np.bincount(rng.integers(genuine, size=genuine), minlength=genuine)
        yield Draw(own, others, impostors)


def depth_of_pairs(highest_rank: int) -> int:
    """The most impostors that a resample of pairs can need: more is rarer than 1e-20."""
    return highest_rank + 12 * math.isqrt(highest_rank) + 100


def identity_codes(identities: ArrayLike, same: np.ndarray) -> tuple[np.ndarray, int]:
    """The identities numbered from 0 without gaps, int32 [P, 2], and their number."""
    identities = np.asarray(identities)
    if identities.shape != (same.size, 2) or not np.issubdtype(identities.dtype, np.integer):
        raise UserError(
            f"identities are {identities.dtype} {list(identities.shape)}: expected integers "
            f"[{same.size}, 2], those of both sides of each pair"
        )
    wrong = np.flatnonzero((identities[:, 0] == identities[:, 1]) != same)
    if wrong.size:
        pair = wrong[0]
        first, second = identities[pair]
        raise UserError(
            f"pair {pair} (from 0) is labelled {int(same[pair])} and has the identities {first} "
            f"and {second}: expected label 1 for equal identities and 0 for different ones"
        )
    low, high = int(identities.min()), int(identities.max())
    if high - low < 4 * identities.size:  # a table is faster than sorting all pairs
        present = np.zeros(high - low + 1, bool)
        present[(identities - low).ravel()] = True
        numbers = np.cumsum(present, dtype=np.int32) - 1
        return numbers[identities - low], int(present.sum())
    values, codes = np.unique(identities, return_inverse=True)
    return codes.reshape(-1, 2).astype(np.int32), values.size


class ShortTail(UserError):
    """A resample's threshold lies below the impostors that were kept: keep more of them."""


class Ranked(NamedTuple):
    """A method's tail in order: genuine ascending, impostor descending, and their weights."""

    genuine: np.ndarray
    genuine_weights: Weights
    impostor: np.ndarray
    impostor_weights: Weights


class Operating(NamedTuple):
    """float64 [F] each: TAR and threshold at each FAR."""

    tar: np.ndarray
    threshold: np.ndarray


def rank_tail(tail: Tail) -> Ranked:
    """Sorts a tail once, for all resamples."""
    # One type, so that no comparison rounds.
    dtype = np.result_type(tail.genuine, tail.impostor)
    order = np.argsort(tail.genuine)
    return Ranked(
        tail.genuine[order].astype(dtype, copy=False),
        pair_weights(tail.genuine_units[order]),
        tail.impostor.astype(dtype, copy=False),
        pair_weights(tail.impostor_units),
    )


def operating_points(
    ranked: Sequence[Ranked], draw: Draw, fars: Sequence[float]
) -> list[Operating] | None:
    """Each method at each FAR, as if each pair were written out `weight` times.

    None where the resample has no pairs of a kind.

    Raises:
      ShortTail: a threshold that is not among the impostors that were kept.
    """
    if not draw.impostors:
        return None
    ranks = np.array([accepted_impostors(far, draw.impostors) for far in fars])
    points = []
    for method in ranked:
        running = np.cumsum(method.genuine_weights(draw.genuine, 0, None), dtype=np.int64)
        if not running[-1]:
            return None
        threshold = thresholds_at_ranks(method, draw, ranks)
        places = np.searchsorted(method.genuine, threshold, side="right")
        rejected = np.where(places > 0, running[places - 1], 0)
        points.append(Operating((running[-1] - rejected) / running[-1], threshold))
    return points


def thresholds_at_ranks(method: Ranked, draw: Draw, ranks: np.ndarray) -> np.ndarray:
    """[F]: the impostor scores at the ranks (from 0) of the list written out; −∞ past its end."""
    thresholds = np.full(len(ranks), -np.inf, method.impostor.dtype)
    wanted = ranks < draw.impostors
    highest = int(ranks[wanted].max(initial=-1))
    start, above, block = 0, 0, max(_FIRST_BLOCK, 9 * highest // 8)
    while above <= highest:
        if start >= method.impostor.size:
            raise ShortTail(
                f"rank {highest:,} of a resample lies below the {method.impostor.size:,} highest "
                "impostors, which weigh "
                f"{above:,} in it: give the tails a higher highest_far, 1 for all impostors"
            )
        weights = method.impostor_weights(draw.impostor, start, start + block)
        running = np.cumsum(weights, dtype=np.int64)
        running += above
        here = wanted & (above <= ranks) & (ranks < running[-1])
        places = start + np.searchsorted(running, ranks[here], side="right")
        thresholds[here] = method.impostor[places]
        start, above, block = start + block, int(running[-1]), max(_FIRST_BLOCK, highest // 8)
    return thresholds
