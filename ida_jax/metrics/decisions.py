"""The pairs on which two methods decide differently: corrected and broken (Fig. 10's view).

P pairs. A pair is accepted strictly above the method's threshold; NaN is never a match.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.resampling import highest_places, without_nan
from ida_jax.metrics.roc import SplitScores

# A kind of pair: which method is right (the other corrects the base, or breaks it), and whether the
# pair is genuine.
Kind = tuple[str, bool]
KINDS: tuple[Kind, ...] = (
    ("corrected", True), ("corrected", False), ("broken", True), ("broken", False),
)  # fmt: skip
# One for all pairs, or one a genuine and one an impostor pair.
Threshold = float | tuple[np.ndarray, np.ndarray]


class Changed(NamedTuple):
    """Pairs of one kind, those furthest from the thresholds first.

    Attributes:
      pairs: int64 [≤ most], their positions among the genuine or among the impostor pairs.
      total: how many there are, listed or not.
    """

    pairs: np.ndarray
    total: int


class Failure(NamedTuple):
    """A pair to look at.

    Attributes:
      kind: "worst" of the method's genuine or impostor pairs, or "corrected" or "broken" by it.
      names: both faces'.
      cosine: NaN where a face has no embedding, and so the score.
      log_density: log F of both faces, where the method has one.
      score: the method's.
      probability: that the pair is genuine, where genuine and impostor pairs are equally frequent;
        None without a calibration.
      group: the pair's, "" without groups.
    """

    method: str
    kind: str
    genuine: bool
    names: tuple[str, str]
    cosine: float
    log_density: tuple[float, float] | None
    score: float
    probability: float | None = None
    group: str = ""


class Failures(NamedTuple):
    """Pairs to look at, by method and kind, the highest score first.

    Attributes:
      pairs: the pairs.
      reading: how their decisions and scores are to be read, in sentences.
    """

    pairs: tuple[Failure, ...] = ()
    reading: str = ""


def worst_places(split: SplitScores, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the lowest genuine and of the highest impostor scores, the worst first.

    NaN stands for −∞. At most `most` of a kind; of equal scores some, in their order.
    """
    genuine, impostor = split
    return (
        highest_places(-without_nan(genuine), min(most, genuine.size)),
        highest_places(impostor, min(most, impostor.size)),
    )


def changed_decisions(
    base: SplitScores,
    other: SplitScores,
    *,
    base_threshold: Threshold,
    other_threshold: Threshold,
    most: int = 24,
) -> dict[Kind, Changed]:
    """The pairs that `other` decides correctly and `base` does not, and the reverse, by kind.

    Far from the thresholds means a large |s − t| / σ, summed over both methods, σ being the
    deviation of the method's finite scores: the decisions then differ clearly, not by rounding. An
    infinite margin (a face that must not match) is the largest; equal ones stay in their order.

    Args:
      base: scores, in any order.
      other: those of the same pairs, on any scale.
      base_threshold: one for all pairs, or one per pair.
      other_threshold: likewise.
    """
    if [kind.shape for kind in base] != [kind.shape for kind in other]:
        raise UserError(
            f"{base.genuine.size} genuine and {base.impostor.size} impostor scores were given, and "
            f"{other.genuine.size} and {other.impostor.size} by the other method: expected one of "
            "each for each pair"
        )
    methods = (base, base_threshold, _deviation(base)), (other, other_threshold, _deviation(other))
    found = {}
    for genuine in (True, False):
        accepted, margins = [], []
        for split, threshold, scale in methods:
            scores = split.genuine if genuine else split.impostor
            if isinstance(threshold, tuple):
                threshold = threshold[0 if genuine else 1]
            accepted.append(scores > threshold)
            margins.append((scores, np.broadcast_to(threshold, scores.shape), scale))
        changed = np.flatnonzero(accepted[0] != accepted[1])
        margin = sum(_distance(s[changed], t[changed]) / scale for s, t, scale in margins)
        right = accepted[1][changed] == genuine
        for way, own in (("corrected", right), ("broken", ~right)):
            order = np.argsort(-margin[own], kind="stable")[:most]
            found[way, genuine] = Changed(changed[own][order], int(np.count_nonzero(own)))
    return {kind: found[kind] for kind in KINDS}


def _deviation(split: SplitScores) -> float:
    """σ of the finite scores; 1 where they are all alike, or none is finite."""
    scores = np.concatenate(split)
    finite = scores[np.isfinite(scores)]
    return float(np.std(finite, dtype=np.float64)) or 1.0 if finite.size else 1.0


def _distance(scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """|s − t|, float64; infinite for NaN scores, and between infinities."""
    with np.errstate(invalid="ignore"):  # inf − inf
        distance = np.abs(scores.astype(np.float64) - threshold)
    return np.where(np.isnan(distance), np.inf, distance)
