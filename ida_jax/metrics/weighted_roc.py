"""`roc`'s rule on weighted pairs: the scores of one resample, without writing any pair out twice.

G genuine and m kept impostor pairs, F FARs, U sides of a pair.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.resampling import Draw, Weights, pair_weights
from ida_jax.metrics.roc import accepted_impostors
from ida_jax.metrics.tails import Tail

_FIRST_BLOCK = 4096


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
        threshold = _thresholds(method, draw, ranks)
        places = np.searchsorted(method.genuine, threshold, side="right")
        rejected = np.where(places > 0, running[places - 1], 0)
        points.append(Operating((running[-1] - rejected) / running[-1], threshold))
    return points


def _thresholds(method: Ranked, draw: Draw, ranks: np.ndarray) -> np.ndarray:
    """[F]: the impostor scores at the ranks (from 0) of the list written out; −∞ past its end."""
    found = np.full(len(ranks), -np.inf, method.impostor.dtype)
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
        found[here] = method.impostor[start + np.searchsorted(running, ranks[here], side="right")]
        start, above, block = start + block, int(running[-1]), max(_FIRST_BLOCK, highest // 8)
    return found
