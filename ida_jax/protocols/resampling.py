"""Resamples of scored pairs, as weights: the draws of `ida_jax.protocols.bootstrap`.

P pairs, I identities, G genuine and n impostor pairs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.errors import UserError

_BATCH = 64


class Ranked(NamedTuple):
    """A method's scores: genuine ascending, impostor descending, and each one's place of origin."""

    genuine: np.ndarray
    genuine_order: np.ndarray
    impostor: np.ndarray
    impostor_order: np.ndarray


def rank_scores(genuine: np.ndarray, impostor: np.ndarray) -> Ranked:
    """Sorts a method's scores, NaN as −∞."""
    dtype = np.result_type(genuine, impostor, np.float16)
    own, other = (
        np.where(np.isnan(scores), -np.inf, scores).astype(dtype) for scores in (genuine, impostor)
    )
    ascending, descending = np.argsort(own), np.argsort(-other)
    return Ranked(own[ascending], ascending, other[descending], descending)


class Draw(NamedTuple):
    """One resample: weights in each method's order, and the impostor pairs' total weight.

    `impostor` has a function a method: the weights of its impostors from start to stop, or as many
    as are known.
    """

    genuine: list[np.ndarray]
    impostor: list[Callable[[int, int], np.ndarray]]
    impostors: int


def draws_of_identities(
    rng: np.random.Generator,
    ranked: Sequence[Ranked],
    genuine: np.ndarray,
    impostor: np.ndarray,
    units: int,
) -> Iterator[Draw]:
    """Endless resamples; genuine [G] and impostor [n, 2] are identities from 0 to units − 1."""
    from scipy.sparse import csr_array

    pairs = csr_array(
        (np.ones(len(impostor), np.float64), (impostor[:, 0], impostor[:, 1])), shape=(units, units)
    )
    genuine_of = [genuine[method.genuine_order] for method in ranked]
    first_of = [impostor[method.impostor_order, 0] for method in ranked]
    second_of = [impostor[method.impostor_order, 1] for method in ranked]

    def weigher(weights: np.ndarray, m: int) -> Callable[[int, int], np.ndarray]:
        return lambda start, stop: (
            weights[first_of[m][start:stop]] * weights[second_of[m][start:stop]]
        )

    while True:
        batch = np.stack(
            [np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(_BATCH)]
        )
        # float64 holds the whole numbers of wᵀCw exactly, up to 2⁵³ pairs.
        as_float = batch.T.astype(np.float64)
        totals = np.einsum("ir,ir->r", as_float, pairs @ as_float)
        for weights, total in zip(batch, totals, strict=True):
            yield Draw(
                [weights[each] for each in genuine_of],
                [weigher(weights, m) for m in range(len(ranked))],
                int(total),
            )


def draws_of_pairs(
    rng: np.random.Generator, ranked: Sequence[Ranked], highest_rank: int
) -> Iterator[Draw]:
    """Endless resamples of pairs, in which only the highest impostors' weights are drawn.

    The draws that fall on a subset of u of n pairs number Binomial(n, u/n), each of them uniform:
    the multinomial's exact marginal. The depth is such that a threshold below it is less likely
    than 1e-20.
    """
    n, genuine = ranked[0].impostor.size, ranked[0].genuine.size
    depth = min(n, highest_rank + 12 * math.isqrt(highest_rank) + 100)
    tops = [method.impostor_order[:depth] for method in ranked]
    drawn = np.unique(np.concatenate(tops))
    places = [np.searchsorted(drawn, top) for top in tops]
    while True:
        count = rng.binomial(n, drawn.size / n)
        weights = np.bincount(rng.integers(drawn.size, size=count), minlength=drawn.size)
        own = np.bincount(rng.integers(genuine, size=genuine), minlength=genuine)
        yield Draw(
            [own[method.genuine_order] for method in ranked],
            [lambda start, stop, p=p, w=weights: w[p[start:stop]] for p in places],
            n,
        )


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
