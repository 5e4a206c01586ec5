"""Resamples of scored pairs, as weights: the draws of `ida_jax.metrics.bootstrap`.

P pairs, I units (identities or templates), G genuine and n impostor pairs, R resamples of a batch.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.tails import Total

_BATCH = 64

# The weights of pairs from start to stop in a resample: (its table of weights, start, stop).
Weights = Callable[[np.ndarray, int, int | None], np.ndarray]


class Draw(NamedTuple):
    """One resample.

    Attributes:
      genuine: the table of weights that genuine pairs look theirs up in.
      impostor: the impostor pairs' table.
      impostors: the weight of all impostor pairs.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    impostors: int


def pair_weights(units: np.ndarray) -> Weights:
    """The rule of `tails` for pairs of units int32 [P, U]: w_a · w_b, or w_a of a pair within a."""
    first, second = (np.ascontiguousarray(units[:, side]) for side in (0, -1))
    alone = np.flatnonzero(first == second)
    if alone.size == first.size:
        return lambda table, start, stop: table.take(first[start:stop])

    def weights(table: np.ndarray, start: int, stop: int | None) -> np.ndarray:
        found = table.take(first[start:stop])
        found *= table.take(second[start:stop])
        if alone.size:
            inside = alone[slice(*np.searchsorted(alone, (start, start + found.size)))]
            found[inside - start] = table[first[inside]]
        return found

    return weights


def draws_of_units(rng: np.random.Generator, units: int, total: Total) -> Iterator[Draw]:
    """Endless resamples of I units drawn with replacement."""
    for batch in unit_weights(rng, units):
        # float64 holds the whole numbers exactly, up to 2⁵³ pairs.
        totals = total(batch.T.astype(np.float64))
        for weights, impostors in zip(batch, totals, strict=True):
            yield Draw(weights, weights, int(impostors))


def unit_weights(rng: np.random.Generator, units: int) -> Iterator[np.ndarray]:
    """Endless batches int32 [R, I] of how often each unit was drawn."""
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
    """How many of the highest impostors a resample of pairs can need: more is rarer than 1e-20."""
    return highest_rank + 12 * math.isqrt(highest_rank) + 100


def identity_codes(identities: ArrayLike, same: np.ndarray) -> tuple[np.ndarray, int]:
    """The identities numbered from 0 without gaps, int32 [P, 2], and how many there are.

    Raises:
      UserError: not integers [P, 2], or a pair whose identities contradict its label.
    """
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
            f"and {second}: expected 1 for two equal ones and 0 for two others"
        )
    low, high = int(identities.min()), int(identities.max())
    if high - low < 4 * identities.size:  # a table is faster than sorting all pairs
        present = np.zeros(high - low + 1, bool)
        present[(identities - low).ravel()] = True
        numbers = np.cumsum(present, dtype=np.int32) - 1
        return numbers[identities - low], int(present.sum())
    values, codes = np.unique(identities, return_inverse=True)
    return codes.reshape(-1, 2).astype(np.int32), values.size
