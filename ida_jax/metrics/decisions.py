"""The pairs on which two methods decide differently: corrected and broken (Fig. 10's view).

P pairs. A pair is accepted strictly above the method's threshold; NaN is never a match.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import SplitScores

# A kind of pair: which method is right (the other corrects the base, or breaks it), and whether the
# pair is genuine.
Kind = tuple[str, bool]
KINDS: tuple[Kind, ...] = (
    ("corrected", True), ("corrected", False), ("broken", True), ("broken", False),
)  # fmt: skip


class Changed(NamedTuple):
    """Pairs of one kind, those furthest from the thresholds first.

    Attributes:
      pairs: int64 [≤ most], their positions.
      total: how many there are, listed or not.
    """

    pairs: np.ndarray
    total: int


class Failure(NamedTuple):
    """A pair to look at.

    Attributes:
      kind: "worst" of the method's genuine or impostor pairs, or "corrected" or "broken" by it.
      names: both faces'.
      log_density: log F of both faces, where the method has one.
      score: the method's.
    """

    method: str
    kind: str
    genuine: bool
    names: tuple[str, str]
    cosine: float
    log_density: tuple[float, float] | None
    score: float


def worst_places(split: SplitScores, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the lowest genuine and of the highest impostor scores, the worst first.

    NaN stands for −∞. At most `most` of a kind; of equal scores some, in their order.
    """
    places = []
    for scores, sign in zip(split, (1, -1), strict=True):
        keys = sign * np.where(np.isnan(scores), -np.inf, scores)
        few = np.arange(keys.size)
        if keys.size > most:
            few = np.sort(np.argpartition(keys, most)[:most])
        places.append(few[np.argsort(keys[few], kind="stable")])
    return places[0], places[1]


def changed_decisions(
    base_scores: ArrayLike,
    other_scores: ArrayLike,
    same: ArrayLike,
    *,
    base_threshold: float,
    other_threshold: float,
    most: int = 24,
) -> dict[Kind, Changed]:
    """The pairs that `other` decides correctly and `base` does not, and the reverse, by kind.

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
    found = {}
    for way, genuine in KINDS:
        right, wrong = (
            (other_right, base_right) if way == "corrected" else (base_right, other_right)
        )
        places = np.flatnonzero(right & ~wrong & (same == genuine))
        margin = _distance(base[places], base_threshold) / scales[0]
        margin += _distance(other[places], other_threshold) / scales[1]
        order = np.argsort(-margin, kind="stable")[:most]
        found[way, genuine] = Changed(places[order], places.size)
    return found


def _deviation(scores: np.ndarray) -> float:
    """σ of the finite scores; 1 where they are all alike, or none is finite."""
    finite = scores[np.isfinite(scores)]
    return float(np.std(finite, dtype=np.float64)) or 1.0 if finite.size else 1.0


def _distance(scores: np.ndarray, threshold: float) -> np.ndarray:
    """|s − t|, float64; infinite for NaN scores, and between infinities."""
    with np.errstate(invalid="ignore"):  # inf − inf
        distance = np.abs(scores.astype(np.float64) - threshold)
    return np.where(np.isnan(distance), np.inf, distance)
