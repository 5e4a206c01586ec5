"""k-fold verification accuracy, as LFW, CALFW and YTF report it.

P pairs, F folds. Scores are on any scale, higher meaning more alike.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError


class KFoldAccuracy(NamedTuple):
    """Accuracy over held-out folds.

    Attributes:
      mean: mean of the folds' accuracies, each fold counting alike.
      deviation: their population standard deviation (ddof 0), which face recognition code prints
        after ±. LFW's own papers print the standard error, with ddof 1 and divided by √F.
      folds: float64 [F], each fold's accuracy, by ascending fold.
      thresholds: float64 [F], the threshold that each fold was scored with.
      correct: bool [P], whether each pair was decided correctly, by its own fold's threshold.
    """

    mean: float
    deviation: float
    folds: np.ndarray
    thresholds: np.ndarray
    correct: np.ndarray


def kfold_accuracy(
    scores: ArrayLike,
    same: ArrayLike,
    *,
    folds: int | ArrayLike = 10,
    candidates: ArrayLike | None = None,
) -> KFoldAccuracy:
    """Scores each fold with the threshold that is best on the other folds.

    A pair is called the same person when its score is strictly above the threshold. The candidates
    are exact and independent of scale: the midpoints between neighbouring distinct scores of the
    other folds. Of equally accurate ones, the midpoint of the widest gap is taken, and of equally
    wide gaps the lowest. Accepting all (−inf) or none (+inf) is taken only where it is better than
    every midpoint. A NaN score (of a bad embedding) is never a match.

    Args:
      scores: [P] scores.
      same: [P] Booleans (or 0 and 1), True for a pair of one person.
      folds: the number of folds, which are then contiguous blocks in the given order, unshuffled,
        the first P mod F of them one longer; or int [P], the fold of each pair.
      candidates: [T] thresholds to choose from in place of the exact ones, the first of equally
        accurate ones (`metrics.insightface` has InsightFace's).

    Raises:
      UserError: lengths that differ, labels other than 0 and 1, fewer than 2 folds, or more folds
        than pairs.
    """
    scores, same, fold_of_pair = checked_pairs(scores, same, folds)

    # One sort serves all folds. What can never be accepted takes no part in the choice.
    order = np.argsort(scores, kind="stable")
    order = order[scores[order] > -np.inf]
    accuracies, thresholds = [], []
    correct = np.empty(scores.size, bool)
    for fold in np.unique(fold_of_pair):
        training = order[fold_of_pair[order] != fold]
        if candidates is None:
            threshold = _best_threshold(scores[training], same[training])
        else:
            threshold = _best_candidate(scores[training], same[training], candidates)
        held_out = fold_of_pair == fold
        correct[held_out] = (scores[held_out] > threshold) == same[held_out]
        accuracies.append(np.mean(correct[held_out]))
        thresholds.append(threshold)
    return KFoldAccuracy(
        mean=float(np.mean(accuracies)),
        deviation=float(np.std(accuracies)),
        folds=np.array(accuracies),
        thresholds=np.array(thresholds),
        correct=correct,
    )


def checked_pairs(
    scores: ArrayLike, same: ArrayLike, folds: int | ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`kfold_accuracy`'s input, checked: float64 [P], bool [P], and each pair's fold, [P]."""
    scores = np.asarray(scores).astype(np.float64)
    same = np.asarray(same)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise UserError(
            f"scores of shape {scores.shape} and labels of shape {same.shape} were given, expected "
            "one score and one label for each pair"
        )
    if not np.isin(same, (0, 1)).all():
        raise UserError("labels other than 0 and 1 were given: 1 (True) marks a pair of one person")
    same = same.astype(bool)
    return scores, same, _fold_of_pair(folds, scores.size)


def _fold_of_pair(folds: int | ArrayLike, pairs: int) -> np.ndarray:
    folds = np.asarray(folds)
    if folds.ndim == 0:
        if not 2 <= folds <= pairs:
            raise UserError(
                f"{folds} folds of {pairs} pairs were requested, expected at least 2, and no more "
                "than pairs"
            )
        sizes = [block.size for block in np.array_split(np.arange(pairs), int(folds))]
        return np.repeat(np.arange(int(folds)), sizes)
    if folds.shape != (pairs,):
        raise UserError(
            f"fold numbers of shape {folds.shape} were given for {pairs} pairs, expected one each"
        )
    if np.unique(folds).size < 2:
        raise UserError(
            "all pairs are in one fold, expected 2 or more: the others give the threshold"
        )
    return folds


def _best_threshold(ascending: np.ndarray, same: np.ndarray) -> float:
    """The most accurate threshold for M scores in ascending order, without −inf and NaN."""
    # Cut i rejects the i lowest scores: right are the impostors below it and the genuine above it.
    right = np.count_nonzero(same) + np.concatenate([[0], np.cumsum(1 - 2 * same.astype(np.int64))])
    with np.errstate(invalid="ignore"):  # inf − inf, between two scores of +inf
        gaps = np.diff(ascending)
    # A cut inside a run of equal scores is not a threshold.
    cuts = 1 + np.flatnonzero(gaps > 0)
    ends = max(right[0], right[-1])
    if cuts.size and right[cuts].max() >= ends:
        best = cuts[right[cuts] == right[cuts].max()]
        cut = best[np.argmax(gaps[best - 1])]
        low, high = ascending[cut - 1 : cut + 1]
        middle = low + (high - low) / 2
        # The middle of two neighbouring floats may round up to the higher, which would reject it.
        return float(middle if middle < high else low)
    return -np.inf if right[0] == ends else np.inf


def _best_candidate(ascending: np.ndarray, same: np.ndarray, candidates: ArrayLike) -> float:
    """The first of the most accurate candidates; scores as `_best_threshold` takes them."""
    candidates = np.asarray(candidates, np.float64)
    genuine, impostor = ascending[same], ascending[~same]
    right = genuine.size - np.searchsorted(genuine, candidates, "right")
    right += np.searchsorted(impostor, candidates, "right")
    return float(candidates[np.argmax(right)])
