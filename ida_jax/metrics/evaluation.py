"""An evaluation's figures, as plain numbers that JSON can hold, and its curves.

P pairs, G genuine and n impostor scores, F points of a curve, N faces. `roc`'s rule holds: a pair
is accepted strictly above the threshold, FARs are never exceeded, and NaN is never a match.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.metrics.decisions import Failures
from ida_jax.metrics.likelihood_ratios import cllr, min_cllr
from ida_jax.metrics.roc import (
    SplitScores,
    equal_error_rate,
    roc_curve,
    tar_at_far,
    threshold_interval,
)
from ida_jax.metrics.threshold_curve import ThresholdCurve

# With fewer false accepts behind it, a figure says little: its relative deviation is over a third.
FEWEST_FALSE_ACCEPTS = 10


def measurable_far(far: float, impostors: int, *, accepts: int = FEWEST_FALSE_ACCEPTS) -> float:
    """The lowest FAR, not below `far` and at most 1/2, with so many false accepts among n pairs.

    Args:
      far: what was asked for.
      impostors: n.
      accepts: the false accepts.
    """
    return min(max(far, accepts / max(impostors, 1)), 0.5)


class Band(NamedTuple):
    """A curve with its confidence band: TAR against FAR, or TPIR against FPIR.

    Attributes:
      far: float64 [F], ascending.
      tar: float64 [F].
      low: float64 [F], the band's lower end; NaN where there is none.
      high: float64 [F], the upper end.
    """

    far: np.ndarray
    tar: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Evaluation(NamedTuple):
    """One protocol variant's figures, curves and notes.

    Attributes:
      figures: {method: figures}, as results.json holds them under the variant's name.
      curves: {method: its curve}; empty where the protocol has none.
      notes: sentences that a reader of the figures must know (a figure that fewer than ten false
        accepts decide, say).
      thresholds: {method: what its thresholds do}, for the report's choice of one; empty where the
        protocol has none.
      failures: pairs to look at, by method and kind.
    """

    figures: dict[str, dict[str, Any]]
    curves: dict[str, Band]
    notes: tuple[str, ...] = ()
    thresholds: Mapping[str, ThresholdCurve] = MappingProxyType({})
    failures: Failures = Failures()


def with_notes(evaluated: Mapping[str, Evaluation], notes: Sequence[str]) -> dict[str, Evaluation]:
    """The variants of {variant: Evaluation} with these notes before their own."""
    return {name: of._replace(notes=(*notes, *of.notes)) for name, of in evaluated.items()}


def with_ignored(evaluation: Evaluation, *, pairs: int, note: str) -> Evaluation:
    """The evaluation with the number of pairs that were left out of it, and the note first."""
    figures = {name: {**of, "ignored_pairs": pairs} for name, of in evaluation.figures.items()}
    return evaluation._replace(figures=figures, notes=(note, *evaluation.notes))


class RegressionQuality(NamedTuple):
    """Agreement of a prediction with its target.

    Attributes:
      r2: 1 − Σ(y − ŷ)² / Σ(y − ȳ)², the share of the target's variance that is explained; 1 is
        perfect, 0 is no better than the mean.
      rank_correlation: Spearman's ρ.
    """

    r2: float
    rank_correlation: float


def split_scores(scores: np.ndarray, same: np.ndarray) -> SplitScores:
    """Sorts scores [P] by label, bool [P], once for all figures; ascending, NaN last."""
    split = SplitScores(scores[same], scores[~same])
    for kind in split:
        kind.sort()
    return split


def verification_figures(split: SplitScores, *, fars: Sequence[float]) -> dict[str, Any]:
    """TAR, threshold and counts at each FAR, and the EER, by `roc`'s rule.

    Keys ending in `@far`, `false_accepts` and `realised_far` hold a value for each FAR, by its
    shortest text (`"0.001"`).

    Args:
      split: the scores; ascending ones without NaN are used without a copy.
      fars: rates in (0, 1].

    Raises:
      UserError: no scores of a kind, or a FAR outside (0, 1].
    """
    points = {far_key(point.far): point for point in tar_at_far(*split, fars)}
    return {
        "genuine": split.genuine.size,
        "impostor": split.impostor.size,
        "tar@far": {far: point.tar for far, point in points.items()},
        "threshold@far": {far: point.threshold for far, point in points.items()},
        "false_accepts": {far: point.false_accepts for far, point in points.items()},
        "realised_far": {far: point.realised_far for far, point in points.items()},
        "eer": equal_error_rate(*split),
    }


def score_figures(split: SplitScores, *, fars: Sequence[float]) -> dict[str, Any]:
    """`verification_figures`, the thresholds' intervals, Cllr, min-Cllr and the curve's points.

    Cllr treats the scores as natural-log likelihood ratios, which raw ones are not. The intervals
    are `threshold_interval`'s, over pairs. `curve` has the ROC's far, tar and threshold; a DET
    curve plots far against 1 − tar.

    Args:
      split: as `split_scores` gives them.
      fars: rates in (0, 1].

    Raises:
      UserError: no scores of a kind, or a FAR outside (0, 1].
    """
    ordered = SplitScores(*(_lowest_first(kind) for kind in split))
    intervals = {far_key(far): list(threshold_interval(ordered.impostor, far)) for far in fars}
    return {
        **verification_figures(ordered, fars=fars),
        "nan": _nans(split.genuine) + _nans(split.impostor),
        "threshold_interval@far": intervals,
        "cllr": cllr(*split),
        "min_cllr": min_cllr(*split),
        "curve": {name: values.tolist() for name, values in roc_curve(*ordered)._asdict().items()},
    }


def wrong_way(genuine: np.ndarray, impostor: np.ndarray) -> str | None:
    """Why scores are not similarities, in words: all alike, or lower for genuine pairs; else None.

    The chance that a genuine score is above an impostor one (ties half), the area under the ROC
    curve, is compared with 1/2: by three of its standard deviations where scores say nothing,
    √((G + n + 1) / 12 G n) (Mann & Whitney 1947), or by 1/4 whatever the numbers. NaN and the
    infinities are left out.

    Args:
      genuine: [G] scores.
      impostor: [n] scores.
    """
    genuine, impostor = (np.sort(kind[np.isfinite(kind)]) for kind in (genuine, impostor))
    if not genuine.size or not impostor.size:
        return None
    if genuine[0] == genuine[-1] == impostor[0] == impostor[-1]:
        return f"all scores are {genuine[0]:g}, and separate nothing: give the method's scores"
    below = np.searchsorted(impostor, genuine, "left") + np.searchsorted(impostor, genuine, "right")
    area = below.mean() / 2 / impostor.size
    spread = np.sqrt((genuine.size + impostor.size + 1) / 12 / genuine.size / impostor.size)
    if area >= max(0.25, 0.5 - 3 * spread):
        return None
    return (
        f"genuine pairs score lower than impostor ones (a genuine score is the higher in "
        f"{area:.1%} of comparisons), as distances do: scores must be higher for pairs that are "
        "more alike; give the distances' negatives"
    )


def regression_quality(predicted: ArrayLike, target: ArrayLike) -> RegressionQuality:
    """R² and Spearman's rank correlation of [N] predictions; NaN where the target is constant."""
    from scipy.stats import rankdata  # takes a second, which every command would wait for

    predicted, target = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if np.ptp(target) == 0 or np.ptp(predicted) == 0:
        return RegressionQuality(float("nan"), float("nan"))
    r2 = 1 - np.sum((target - predicted) ** 2) / np.sum((target - target.mean()) ** 2)
    correlation = np.corrcoef(rankdata(predicted), rankdata(target))[0, 1]
    return RegressionQuality(float(r2), float(correlation))


def far_key(far: float) -> str:
    """A FAR's shortest text, its key in figures: 0.001, 1e-05."""
    return f"{far:g}"


def _lowest_first(ascending: np.ndarray) -> np.ndarray:
    """The scores with the NaNs at their end as −∞ at their beginning; without any, the array."""
    if nans := _nans(ascending):
        return np.concatenate([np.full(nans, -np.inf, ascending.dtype), ascending[:-nans]])
    return ascending


def _nans(scores: np.ndarray) -> int:
    return int(np.count_nonzero(np.isnan(scores)))
