"""How sure a TAR is: the paired bootstrap, over identities or over pairs.

P pairs, I identities, G genuine and n impostor pairs, R resamples, F FARs, M methods.

Over identities: a resample draws I identities with replacement, identity a coming w_a times. A
genuine pair of a then counts w_a times, an impostor pair of a and b w_a · w_b times: a person drawn
twice brings two copies of everything, and copies of one person make no impostor pairs. Each
resample is scored by `roc`'s rule, as if its pairs were written out that often. Pairs that share a
person come and go together, so that their dependence is in the intervals.

Over pairs, where identities are not known: G genuine and n impostor pairs are drawn with
replacement. That takes pairs for independent, so that intervals come out too narrow.

All methods are scored on the same resamples, so that their difference has an interval of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.errors import UserError
from ida_jax.protocols.resampling import (
    Ranked,
    draws_of_identities,
    draws_of_pairs,
    identity_codes,
    rank_scores,
)
from ida_jax.protocols.roc import accepted_impostors

_FIRST_BLOCK = 4096


class Interval(NamedTuple):
    """A confidence interval, in the unit of what it is of."""

    low: float
    high: float


class BootstrapPoint(NamedTuple):
    """One method at one FAR.

    Attributes:
      far: the FAR.
      tar: interval of the TAR.
      threshold: interval of the threshold.
    """

    far: float
    tar: Interval
    threshold: Interval


class BootstrapDifference(NamedTuple):
    """A method's TAR minus the baseline's at one FAR.

    Attributes:
      far: the FAR.
      tar: interval of the difference.
      share_above_0: the share of resamples in which the method's TAR is the higher.
    """

    far: float
    tar: Interval
    share_above_0: float


class Bootstrap(NamedTuple):
    """Intervals by method, and of the differences to the baseline.

    Attributes:
      over: "identities" or "pairs": what was resampled.
      units: how many of them there are.
      resamples: those that count; one without genuine or impostor pairs does not.
      methods: {method: a point for each FAR}.
      differences: {method: a difference for each FAR}, of all methods but the baseline.
    """

    over: str
    units: int
    resamples: int
    methods: dict[str, tuple[BootstrapPoint, ...]]
    differences: dict[str, tuple[BootstrapDifference, ...]]


def bootstrap_tar(
    scores_by_method: Mapping[str, ArrayLike],
    same: ArrayLike,
    *,
    fars: Sequence[float],
    identities: ArrayLike | None = None,
    baseline: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Bootstrap:
    """Percentile intervals of TAR, threshold and TAR difference at each FAR.

    One sort of the impostors a method; a resample then weighs no more of the highest ones than
    reach its largest rank ⌊f·W⌋, with W = wᵀCw and C the impostor pairs counted by identities.

    Args:
      scores_by_method: {method: [P] scores}, higher meaning more alike; NaN stands for −∞.
      same: bool [P], True for a genuine pair.
      fars: [F] rates in (0, 1].
      identities: int [P, 2], the identities of both sides of each pair; over pairs where None.
      baseline: the method that the others are compared with.
      resamples: R.
      seed: of the draws; the same seed gives the same intervals.
      level: the intervals' confidence, in (0, 1).
      progress: wraps the resamples' iterator, to show progress.

    Raises:
      UserError: no pairs of a kind, lengths that differ, an unknown baseline, identities that
        contradict `same`, fewer than 2 resamples, or none with pairs of both kinds.
    """
    same = np.asarray(same, bool)
    split = {name: _split(name, scores, same) for name, scores in scores_by_method.items()}
    if baseline is not None and baseline not in split:
        raise UserError(f"the baseline '{baseline}' is none of the methods {', '.join(split)}")
    if resamples < 2:
        raise UserError(f"{resamples} resamples were asked for, expected at least 2")
    rng = np.random.default_rng(seed)
    counts = {"genuine": np.count_nonzero(same), "impostor": np.count_nonzero(~same)}
    for kind, count in counts.items():
        if not count:
            raise UserError(f"0 {kind} pairs were given, at least 1 is needed: check the labels")
    ranked = [rank_scores(*scores) for scores in split.values()]
    if identities is None:
        over, units = "pairs", same.size
        highest = max(accepted_impostors(far, counts["impostor"]) for far in fars)
        draws = draws_of_pairs(rng, ranked, highest)
    else:
        over = "identities"
        codes, units = identity_codes(identities, same)
        draws = draws_of_identities(rng, ranked, codes[same, 0], codes[~same], units)

    tars, thresholds = [], []
    for _, draw in zip(progress(range(resamples)), draws, strict=False):
        if draw.impostors == 0 or draw.genuine[0].sum() == 0:
            continue
        ranks = np.array([accepted_impostors(far, draw.impostors) for far in fars])
        found = [
            _threshold(method.impostor, weights, ranks)
            for method, weights in zip(ranked, draw.impostor, strict=True)
        ]
        thresholds.append(found)
        tars.append([_tar(*each) for each in zip(ranked, draw.genuine, found, strict=True)])
    if not tars:
        raise UserError(
            f"none of {resamples} resamples of {units} {over} has pairs of both kinds: expected "
            "more of them"
        )
    return _summary(
        tuple(split), baseline, fars, np.array(tars), np.array(thresholds), level, over, units
    )


def _threshold(
    descending: np.ndarray, weights: Callable[[int, int], np.ndarray], ranks: np.ndarray
) -> np.ndarray:
    """[F]: the scores at the ranks (from 0) of the list with each score written `weight` times.

    −∞ for a rank past its end.
    """
    found = np.full(len(ranks), -np.inf)
    start, above, block = 0, 0, max(_FIRST_BLOCK, 5 * int(ranks.max()) // 4)
    while start < descending.size and above <= ranks.max():
        running = above + np.cumsum(weights(start, start + block))
        if not running.size:
            break
        here = (above <= ranks) & (ranks < running[-1])
        found[here] = descending[start + np.searchsorted(running, ranks[here], side="right")]
        start, above = start + block, running[-1]
    return found


def _tar(method: Ranked, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[F]: the weighted share of genuine scores strictly above each threshold."""
    running = np.append(0, np.cumsum(weights))
    rejected = running[np.searchsorted(method.genuine, thresholds, side="right")]
    return (running[-1] - rejected) / running[-1]


def _summary(
    names: tuple[str, ...],
    baseline: str | None,
    fars: Sequence[float],
    tars: np.ndarray,
    thresholds: np.ndarray,
    level: float,
    over: str,
    units: int,
) -> Bootstrap:
    """The intervals of tars and thresholds, float64 [R, M, F] each."""

    def intervals(samples: np.ndarray) -> list[Interval]:
        tail = (1 - level) / 2
        # The nearest sample: between −∞ and a score there is nothing to interpolate.
        ends = np.quantile(samples, [tail, 1 - tail], axis=0, method="nearest")
        return [Interval(float(low), float(high)) for low, high in ends.T]

    methods, differences = {}, {}
    for m, name in enumerate(names):
        each = zip(fars, intervals(tars[:, m]), intervals(thresholds[:, m]), strict=True)
        methods[name] = tuple(BootstrapPoint(float(far), *ends) for far, *ends in each)
        if baseline is not None and name != baseline:
            gain = tars[:, m] - tars[:, names.index(baseline)]
            each = zip(fars, intervals(gain), np.mean(gain > 0, axis=0), strict=True)
            differences[name] = tuple(
                BootstrapDifference(float(far), ends, float(share)) for far, ends, share in each
            )
    return Bootstrap(over, units, len(tars), methods, differences)


def _split(name: str, scores: ArrayLike, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores)
    if scores.shape != same.shape or same.ndim != 1:
        raise UserError(
            f"scores of shape {scores.shape} ({name}) and labels of shape {same.shape} were given, "
            "expected one score and one label for each pair"
        )
    return scores[same], scores[~same]
