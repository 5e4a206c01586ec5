"""What a threshold does, at enough of them to choose one: counts, and the rates' intervals.

G genuine and n impostor scores, F thresholds, Q groups of pairs. `roc`'s rule holds: a pair is
accepted strictly above the threshold, and a FAR that is asked for is never exceeded.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ida_jax.metrics.bootstrap import Bootstrap, BootstrapPoint
from ida_jax.metrics.roc import SplitScores, accepted_impostors, as_scores, ascending

_POINTS = 200


class GroupPart(NamedTuple):
    """One group's impostor pairs, and int64 [F], how many are above each threshold."""

    impostor: int
    false_accepts: np.ndarray


class ThresholdCurve(NamedTuple):
    """One method at F of its thresholds, from the strictest to the most lenient.

    Attributes:
      genuine: G.
      impostor: n.
      threshold: float64 [F], descending, all finite; the first is the highest impostor score.
      false_accepts: int64 [F], impostors above it.
      true_accepts: int64 [F], genuine scores above it.
      tar_interval: float64 [F, 2], of the TAR at the threshold's FAR; NaN where there is none.
      threshold_interval: float64 [F, 2], of the threshold that has this FAR; NaN likewise.
      groups: {group of pairs: its part}, where groups are known.
    """

    genuine: int
    impostor: int
    threshold: np.ndarray
    false_accepts: np.ndarray
    true_accepts: np.ndarray
    tar_interval: np.ndarray
    threshold_interval: np.ndarray
    groups: Mapping[str, GroupPart] = MappingProxyType({})


def threshold_curve(
    split: SplitScores,
    *,
    fars: Sequence[float] = (),
    intervals: Sequence[BootstrapPoint] = (),
    points: int = _POINTS,
) -> ThresholdCurve:
    """Thresholds of no false accept, of `points` counts of them evenly in the logarithm, of `fars`.

    FARs of 1, 2 and 5 times a power of ten are among them. Intervals are those of the bootstrap at
    its FARs, linear in log FAR between them, and none beyond.

    Args:
      split: the scores; ascending ones without NaN are used without a copy.
      fars: rates in (0, 1]; their thresholds are those of `tar_at_far`.
      intervals: the bootstrap's points of this method, which give the intervals.

    Raises:
      UserError: no scores of a kind, or a FAR outside (0, 1].
    """
    genuine, impostor = (ascending(scores) for scores in as_scores(*split))
    n = impostor.size
    spread = np.rint(np.geomspace(1, n, points)).astype(int)
    nominal = {0: 0.0} | {r: r / n for r in spread.tolist()}
    decades = [m * 10.0**-e for e in range(int(np.log10(n)) + 1, -1, -1) for m in (1, 2, 5)]
    bootstrapped = [point.far for point in intervals]
    # The last ones win: a threshold of a FAR that was asked for has that FAR's interval.
    for far in [*(d for d in decades if 1 / n <= d <= 1), *bootstrapped, *map(float, fars)]:
        nominal[accepted_impostors(far, n)] = far
    nominal.pop(n, None)  # no threshold accepts all of them
    accepted = np.array(sorted(nominal))
    threshold = impostor[n - 1 - accepted].astype(np.float64)
    # Of tied thresholds the last: the highest FAR that it is the threshold of.
    kept = np.append(threshold[1:] < threshold[:-1], True) & np.isfinite(threshold)
    accepted, threshold = accepted[kept], threshold[kept]
    at = np.array([nominal[r] for r in accepted.tolist()])
    return ThresholdCurve(
        genuine.size,
        n,
        threshold,
        n - np.searchsorted(impostor, threshold, side="right"),
        genuine.size - np.searchsorted(genuine, threshold, side="right"),
        _between(at, bootstrapped, [point.tar for point in intervals]),
        _between(at, bootstrapped, [point.threshold for point in intervals]),
    )


def threshold_curves(
    splits: Mapping[str, SplitScores], bootstrap: Bootstrap, fars: Sequence[float]
) -> dict[str, ThresholdCurve]:
    """{method: its curve}, with the intervals of its bootstrap where it has any."""
    return {
        name: threshold_curve(split, fars=fars, intervals=bootstrap.methods.get(name, ()))
        for name, split in splits.items()
    }


def with_groups(
    curve: ThresholdCurve, impostor: np.ndarray, codes: np.ndarray, names: Sequence[str]
) -> ThresholdCurve:
    """The curve with each group's part; groups without impostor pairs are left out.

    Args:
      impostor: [n] scores, in any order.
      codes: int [n], each pair's group among the Q names; negative for none.
    """
    known = codes >= 0
    scores = np.where(np.isnan(impostor[known]), -np.inf, impostor[known]).astype(np.float64)
    # How many thresholds, from the lowest, are below the score.
    passed = np.searchsorted(curve.threshold[::-1], scores, side="left")
    size = len(curve.threshold) + 1
    cells = np.bincount(codes[known].astype(np.int64) * size + passed, minlength=len(names) * size)
    counts = cells.reshape(len(names), size)
    above = np.cumsum(counts[:, :0:-1], axis=1)
    parts = zip(names, counts.sum(axis=1).tolist(), above, strict=True)
    return curve._replace(groups={name: GroupPart(n, of) for name, n, of in parts if n})


def _between(
    fars: np.ndarray, known: Sequence[float], ends: Sequence[tuple[float, float]]
) -> np.ndarray:
    """float64 [F, 2]: intervals at `fars` from those at `known` FARs; NaN outside."""
    found = np.full((len(fars), 2), np.nan)
    if not len(known):
        return found
    order = np.argsort(known)
    known, ends = np.array(known)[order], np.array(ends, np.float64)[order]
    inside = (fars >= known[0]) & (fars <= known[-1])
    with np.errstate(invalid="ignore"):  # between infinite ends there is none
        for side in (0, 1):
            found[inside, side] = np.interp(np.log(fars[inside]), np.log(known), ends[:, side])
    return found
