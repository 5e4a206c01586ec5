"""Everything that labelled scores of one method tell, as plain numbers that JSON can hold.

P pairs, G genuine and n impostor scores. `roc`'s rule holds: a pair is accepted strictly above the
threshold, FARs are never exceeded, and NaN is never a match.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ida_jax.protocols.calibration import cllr, min_cllr, threshold_interval
from ida_jax.protocols.roc import equal_error_rate, roc_curve, tar_at_far

# With fewer false accepts behind it, a figure says little: its relative deviation is over a third.
FEWEST_FALSE_ACCEPTS = 10


class LabelledScores(NamedTuple):
    """One method's scores by kind, ascending, NaN last.

    Attributes:
      genuine: [G].
      impostor: [n].
    """

    genuine: np.ndarray
    impostor: np.ndarray


def labelled_scores(scores: np.ndarray, same: np.ndarray) -> LabelledScores:
    """Sorts scores [P] by label, bool [P], once for all figures."""
    split = LabelledScores(scores[same], scores[~same])
    for kind in split:
        kind.sort()
    return split


def score_figures(split: LabelledScores, *, fars: Sequence[float]) -> dict[str, Any]:
    """TAR, threshold and counts at each FAR, EER, Cllr, min-Cllr and the curve's points.

    Keys ending in `@far` hold a value for each FAR, by its shortest text (`"0.001"`). Cllr takes
    the scores for natural-log likelihood ratios, which raw ones are not. The threshold's interval
    is `threshold_interval`'s, over pairs. `curve` has the ROC's far, tar and threshold; a DET curve
    plots far against 1 − tar.

    Raises:
      UserError: no scores of a kind, or a FAR outside (0, 1].
    """
    ordered = [_lowest_first(kind) for kind in split]
    points = tar_at_far(*ordered, fars)
    curve = roc_curve(*ordered)
    intervals = {p.far: threshold_interval(ordered[1], p.far) for p in points}
    return {
        "genuine": split.genuine.size,
        "impostor": split.impostor.size,
        "nan": _nans(split.genuine) + _nans(split.impostor),
        "tar@far": {far_key(p.far): p.tar for p in points},
        "threshold@far": {far_key(p.far): p.threshold for p in points},
        "threshold_interval@far": {far_key(far): list(ends) for far, ends in intervals.items()},
        "false_accepts": {far_key(p.far): p.false_accepts for p in points},
        "realised_far": {far_key(p.far): p.realised_far for p in points},
        "eer": equal_error_rate(*ordered),
        "cllr": cllr(*split),
        "min_cllr": min_cllr(*split),
        "curve": {name: values.tolist() for name, values in curve._asdict().items()},
    }


def group_figures(
    scores: np.ndarray,
    same: np.ndarray,
    *,
    groups: np.ndarray,
    names: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """{group: counts, and TAR and realised FAR at each threshold, the same for all groups}.

    A group without impostor (genuine) pairs has no FAR (TAR): None.

    Args:
      scores: [P].
      same: bool [P].
      groups: int [P], the group of each pair, a place in `names`.
      names: the groups' names.
      thresholds: a threshold for each FAR's key, as in `score_figures`.
    """
    count = {
        kind: np.bincount(groups[wanted], minlength=len(names)).tolist()
        for kind, wanted in (("genuine", same), ("impostor", ~same))
    }
    figures = {
        name: {"genuine": count["genuine"][i], "impostor": count["impostor"][i]}
        | {"tar@far": {}, "realised_far": {}, "false_accepts": {}}
        for i, name in enumerate(names)
    }
    for far, threshold in thresholds.items():
        accepted = scores > threshold
        right = np.bincount(groups[accepted & same], minlength=len(names)).tolist()
        wrong = np.bincount(groups[accepted & ~same], minlength=len(names)).tolist()
        for name, hits, misses in zip(names, right, wrong, strict=True):
            of = figures[name]
            of["false_accepts"][far] = misses
            of["tar@far"][far] = hits / of["genuine"] if of["genuine"] else None
            of["realised_far"][far] = misses / of["impostor"] if of["impostor"] else None
    return figures


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
