"""The pairs on which two methods decide differently: corrected and broken (Fig. 10's view).

P pairs. A pair is accepted strictly above the method's threshold; NaN is never a match.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError


class Counts(NamedTuple):
    """The number of pairs of each kind, including those left out of the lists."""

    corrected_genuine: int
    corrected_impostor: int
    broken_genuine: int
    broken_impostor: int


class Changed(NamedTuple):
    """Pairs on which `base` and `other` disagree, those furthest from the thresholds first.

    Attributes:
      corrected_genuine: int64 [≤ most], positions of genuine pairs that `other` alone accepts.
      corrected_impostor: impostors that `base` alone accepts.
      broken_genuine: genuine pairs that `base` alone accepts.
      broken_impostor: impostors that `other` alone accepts.
      counts: of all of them.
    """

    corrected_genuine: np.ndarray
    corrected_impostor: np.ndarray
    broken_genuine: np.ndarray
    broken_impostor: np.ndarray
    counts: Counts


def changed_decisions(
    base_scores: ArrayLike,
    other_scores: ArrayLike,
    same: ArrayLike,
    *,
    base_threshold: float,
    other_threshold: float,
    most: int = 24,
) -> Changed:
    """The pairs that `other` decides correctly and `base` does not, and the reverse.

    Far from the thresholds means a large |s − t| / σ, summed over both methods, σ being the
    deviation of the method's finite scores: the decisions then differ clearly, not by rounding. An
    infinite margin (a face that must not match) is the largest; equal ones stay in their order.

    Args:
      base_scores: [P].
      other_scores: [P], of the same pairs on any scale.
      same: bool [P].

    Raises:
      UserError: lengths that differ.
    """
    base, other, same = np.asarray(base_scores), np.asarray(other_scores), np.asarray(same, bool)
    if not base.shape == other.shape == same.shape or same.ndim != 1:
        raise UserError(
            f"scores of shapes {base.shape} and {other.shape} and labels of shape {same.shape} "
            "were given, expected one of each for each pair"
        )
    base_right = (base > base_threshold) == same
    other_right = (other > other_threshold) == same
    scales = _deviation(base), _deviation(other)
    listed, counts = [], []
    for wanted in (other_right & ~base_right, base_right & ~other_right):
        for kind in (same, ~same):
            places = np.flatnonzero(wanted & kind)
            margin = _distance(base[places], base_threshold) / scales[0]
            margin += _distance(other[places], other_threshold) / scales[1]
            listed.append(places[np.argsort(-margin, kind="stable")[:most]])
            counts.append(places.size)
    return Changed(*listed, Counts(*counts))


def _deviation(scores: np.ndarray) -> float:
    """σ of the finite scores; 1 where they are all alike, or none is finite."""
    finite = scores[np.isfinite(scores)]
    return float(np.std(finite, dtype=np.float64)) or 1.0 if finite.size else 1.0


def _distance(scores: np.ndarray, threshold: float) -> np.ndarray:
    """|s − t|, float64; infinite for NaN scores, and between infinities."""
    with np.errstate(invalid="ignore"):  # inf − inf
        distance = np.abs(scores.astype(np.float64) - threshold)
    return np.where(np.isnan(distance), np.inf, distance)
