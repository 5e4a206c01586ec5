"""True accept rates at false accept rates, the ROC curve and the equal error rate.

G genuine scores (pairs of one person) and n impostor scores (pairs of two people), higher meaning
more alike; on any scale, since only their order counts.

One rule everywhere: a pair is accepted when its score is STRICTLY above the threshold, and the
threshold for a FAR f is the ⌊f·n⌋-th (from 0) highest impostor score. At most ⌊f·n⌋ impostors then
lie above it, so that f is never exceeded; impostors tied with the threshold are all rejected.
A NaN score (of a bad embedding) stands for −∞: never a match, yet counted in G or n.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError


class Interval(NamedTuple):
    """A confidence interval, in the unit of the figure."""

    low: float
    high: float


class SplitScores(NamedTuple):
    """One method's scores by the kind of their pairs.

    Attributes:
      genuine: [G], pairs of one identity.
      impostor: [n], pairs of two.
    """

    genuine: np.ndarray
    impostor: np.ndarray


class OperatingPoint(NamedTuple):
    """TAR at one FAR.

    Attributes:
      tar: share of the genuine scores strictly above the threshold.
      threshold: in the scores' unit; −inf where f·n = n, which accepts every finite score.
      false_accepts: impostors strictly above the threshold: the count that the figure rests on.
      realised_far: false_accepts / n, never above `far`.
    """

    far: float
    tar: float
    threshold: float
    false_accepts: int
    realised_far: float


class Curve(NamedTuple):
    """A ROC curve for plotting, float64 [points] each, by ascending FAR.

    Attributes:
      far: the FARs, r/n for whole numbers r: spaced evenly in log FAR from 1/n to 1.
      tar: TAR at each, by this module's rule.
    """

    far: np.ndarray
    tar: np.ndarray
    threshold: np.ndarray


def tar_at_far(
    genuine: ArrayLike, impostor: ArrayLike, fars: Sequence[float]
) -> tuple[OperatingPoint, ...]:
    """TAR at each of `fars`, in their order.

    ⌊f·n⌋ is taken as the largest whole number r with r/n ≤ f in floating point. A product would
    round 0.29·100 down to 28; a quotient is rounded as the literal f was, so r/n = f is seen.
    With f·n < 1 the threshold is the highest impostor score and no impostor is accepted.

    Memory: one copy of the impostor scores in their own precision. Time: linear in n, by selection
    instead of a sort.

    Args:
      genuine: [G] scores.
      impostor: [n] scores.
      fars: rates in (0, 1].

    Raises:
      UserError: no genuine or no impostor scores, Booleans in place of scores, or an f outside
        (0, 1].
    """
    genuine, impostor = as_scores(genuine, impostor)
    n = impostor.size
    accepted = [accepted_impostors(far, n) for far in fars]
    ordered = np.where(np.isnan(impostor), -np.inf, impostor)
    if positions := sorted({n - 1 - r for r in accepted if r < n}):
        ordered.partition(positions)

    points = []
    for far, r in zip(fars, accepted, strict=True):
        threshold = ordered[n - 1 - r] if r < n else ordered.dtype.type(-np.inf)
        # Selection leaves the r highest scores behind position n-1-r: only those can be above it.
        false_accepts = int(np.count_nonzero(ordered[n - r :] > threshold))
        tar = float(np.mean(genuine > threshold))
        points.append(
            OperatingPoint(float(far), tar, float(threshold), false_accepts, false_accepts / n)
        )
    return tuple(points)


def roc_curve(genuine: ArrayLike, impostor: ArrayLike, *, points: int = 400) -> Curve:
    """TAR at FARs spaced evenly in log FAR from 1/n to 1.

    Near 1/n neighbouring FARs are the same whole number of impostors; each number is kept once, so
    the curve has at most `points` points. Scores in ascending order are used without a copy: for
    both this and `equal_error_rate` on millions of scores, sort once beforehand.

    Args:
      genuine: [G] scores.
      impostor: [n] scores.

    Raises:
      UserError: no genuine or no impostor scores, or Booleans in place of scores.
    """
    genuine, impostor = (ascending(scores) for scores in as_scores(genuine, impostor))
    n = impostor.size
    accepted = np.unique(np.rint(np.geomspace(1, n, points)).astype(np.int64))
    # At r = n the index is −1, a stand-in: there is no n-th highest score, and −inf is taken.
    threshold = np.where(accepted < n, impostor[n - 1 - accepted], -np.inf)
    rejected = np.searchsorted(genuine, threshold, side="right")
    return Curve(accepted / n, 1 - rejected / genuine.size, threshold.astype(np.float64))


def equal_error_rate(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """The rate at which false accepts and false rejects are equally frequent.

    FAR(t) = share of impostors > t and FRR(t) = share of genuine ≤ t are steps; between the two
    neighbouring thresholds where their order turns, both are interpolated linearly (the crossing of
    the ROC polyline with TAR = 1 − FAR, as with scikit-learn's roc_curve).

    Args:
      genuine: [G] scores.
      impostor: [n] scores.

    Raises:
      UserError: no genuine or no impostor scores, or Booleans in place of scores.
    """
    genuine, impostor = (ascending(scores) for scores in as_scores(genuine, impostor))

    def rates(threshold: np.floating) -> tuple[float, float]:
        far = 1 - np.searchsorted(impostor, threshold, side="right") / impostor.size
        frr = np.searchsorted(genuine, threshold, side="right") / genuine.size
        return float(far), float(frr)

    def too_strict(threshold: np.floating) -> bool:
        far, frr = rates(threshold)
        return far < frr

    below, above = [], []
    for scores in (genuine, impostor):
        turn = bisect_left(scores, True, key=too_strict)
        below += [scores[turn - 1]] if turn else []
        above += [scores[turn]] if turn < scores.size else []
    # Without a threshold on the lenient side, that side is the ROC's end: everything accepted.
    far_0, frr_0 = rates(max(below)) if below else (1.0, 0.0)
    far_1, frr_1 = rates(min(above))
    weight = (far_0 - frr_0) / ((far_0 - frr_0) + (frr_1 - far_1))
    return far_0 + weight * (far_1 - far_0)


def threshold_interval(impostor: ArrayLike, far: float, *, level: float = 0.95) -> Interval:
    """Confidence interval of the threshold whose true FAR is f, from order statistics.

    Of n independent impostor pairs, Binomial(n, f) lie above the true threshold; the interval lies
    between the two impostor scores whose ranks the binomial's tails give, whatever the scores'
    distribution. Pairs that share faces are not independent: the true interval is then wider, and
    `bootstrap_tar` over identities gives it.

    Args:
      impostor: [n] scores; NaN stands for −∞.
      far: f in (0, 1].
      level: the confidence, in (0, 1).

    Returns:
      The interval; high is +∞ where too few scores lie above (f·n below 3.7 at 95 %).

    Raises:
      UserError: no scores, or an f outside (0, 1].
    """
    from scipy.stats import binom

    impostor, _ = as_scores(impostor, impostor)
    n = impostor.size
    accepted_impostors(far, n)
    tail = (1 - level) / 2
    # The u-th highest (from 0) is at most the threshold iff no more than u lie above it.
    deepest = int(binom.ppf(1 - tail, n, far))
    highest = int(binom.ppf(tail, n, far))
    if binom.cdf(highest, n, far) > tail:
        highest -= 1
    ordered = np.where(np.isnan(impostor), -np.inf, impostor)
    positions = [n - 1 - rank for rank in (deepest, highest) if 0 <= rank < n]
    if positions:
        ordered.partition(positions)
    low = float(ordered[n - 1 - deepest]) if deepest < n else -np.inf
    return Interval(low, float(ordered[n - 1 - highest]) if highest >= 0 else np.inf)


def as_scores(genuine: ArrayLike, impostor: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat arrays of one floating type, so that no comparison rounds or copies."""
    checked = []
    for kind, scores in (("genuine", genuine), ("impostor", impostor)):
        scores = np.asarray(scores).ravel()
        if not scores.size:
            raise UserError(f"0 {kind} scores were given, at least 1 is needed: check the labels")
        if scores.dtype == bool:
            raise UserError(
                f"the {kind} scores are Booleans, expected numbers: pass scores[same] as genuine "
                "and scores[~same] as impostor"
            )
        if not np.issubdtype(scores.dtype, np.floating):
            scores = scores.astype(np.float64)
        checked.append(scores)
    dtype = np.result_type(*checked)
    return checked[0].astype(dtype, copy=False), checked[1].astype(dtype, copy=False)


def ascending(scores: np.ndarray) -> np.ndarray:
    """Scores from lowest to highest, NaN as −inf; the array itself where it is sorted already."""
    if np.all(scores[:-1] <= scores[1:]) and not np.isnan(scores[0]):
        return scores
    ordered = np.where(np.isnan(scores), -np.inf, scores)
    ordered.sort()
    return ordered


def accepted_impostors(far: float, n: int) -> int:
    """⌊far·n⌋: the largest r with r/n ≤ far in floating point."""
    far = float(far)
    if not 0 < far <= 1:
        raise UserError(f"FAR {far} was given, expected one above 0 and at most 1")
    r = round(far * n)  # the floor or one more, however the product was rounded
    return r - 1 if r / n > far else r
