"""Verification figures by the rule of InsightFace's arcface_torch (eval/verification.py).

Pairs are compared by the squared distance of their unit embeddings, d = ‖f₁ − f₂‖² = 2 − 2⟨f₁, f₂⟩,
and a pair is accepted where d is strictly below a threshold from a fixed grid. `metrics.kfold`
takes exact midpoints instead, so that the two differ by a few pairs.

P pairs, F folds.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.kfold import KFoldAccuracy, checked_pairs, kfold_accuracy

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
VAL_THRESHOLDS = np.arange(0, 4, 0.001)
VAL_FAR = 1e-3
# Pairs whose rows are gathered at once.
_BLOCK = 4096


class ValidationRate(NamedTuple):
    """VAL@FAR over held-out folds.

    Attributes:
      mean: mean of the folds' VAL, the share of genuine pairs that are accepted.
      deviation: their population standard deviation (ddof 0).
      far: mean of the FARs that the folds have, which may be above the one aimed at.
      thresholds: float64 [F], squared distances.
    """

    mean: float
    deviation: float
    far: float
    thresholds: np.ndarray


def squared_distances(faces: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """‖f₁ − f₂‖² of rows brought to unit length in float64: float64 [P].

    Args:
      faces: floating point [N, D].
      pairs: int [P, 2], rows of faces.
    """
    out = np.empty(len(pairs))
    for start in range(0, len(pairs), _BLOCK):
        sides = np.asarray(faces[pairs[start : start + _BLOCK]], np.float64)
        sides /= np.linalg.norm(sides, axis=2, keepdims=True)
        out[start : start + _BLOCK] = np.sum(np.square(sides[:, 0] - sides[:, 1]), axis=1)
    return out


def insightface_accuracy(
    distances: ArrayLike, same: ArrayLike, *, folds: int | ArrayLike = 10
) -> KFoldAccuracy:
    """arcface_torch's 10-fold accuracy (`calculate_roc`).

    Each fold is scored with the threshold among 0, 0.01, … 3.99 that is most accurate on the other
    folds, the lowest of equally accurate ones. `thresholds` are squared distances.

    Args:
      distances: [P], squared; NaN is never a match.
      same, folds: as `kfold_accuracy`.

    Raises:
      UserError: as `kfold_accuracy`.
    """
    found = kfold_accuracy(
        -np.asarray(distances, np.float64), same, folds=folds, candidates=-ACCURACY_THRESHOLDS
    )
    return found._replace(thresholds=-found.thresholds)


def validation_rate(
    distances: ArrayLike, same: ArrayLike, *, far: float = VAL_FAR, folds: int | ArrayLike = 10
) -> ValidationRate:
    """arcface_torch's VAL@FAR (`calculate_val`).

    The FAR of the other folds at the thresholds 0, 0.001, … 3.999 is taken for a function that is
    linear between two of them; a fold's threshold is where it reaches `far`, or 0 where it never
    does. Of neighbouring thresholds with one FAR the highest counts, as in the releases of SciPy
    whose interp1d took such input; newer ones refuse it.

    Args:
      distances: [P], squared; NaN is never a match.
      same, folds: as `kfold_accuracy`.
      far: aimed at.

    Raises:
      UserError: as `kfold_accuracy`; or a fold without pairs of a kind, whose rate is undefined.
    """
    distances, same, fold_of_pair = checked_pairs(distances, same, folds)
    values, fars, thresholds = [], [], []
    for fold in np.unique(fold_of_pair):
        held_out = fold_of_pair == fold
        for kind, count in (
            ("genuine", same[held_out].sum()),
            ("impostor", (~same[held_out]).sum()),
        ):
            if not count:
                raise UserError(
                    f"fold {len(values) + 1} of {np.unique(fold_of_pair).size} has no {kind} pair, "
                    "which InsightFace's rule needs in each: list the two kinds in turn"
                )
        impostors = np.sort(distances[~held_out & ~same])
        of_training = np.searchsorted(impostors, VAL_THRESHOLDS) / impostors.size
        threshold = 0.0
        if of_training[-1] >= far:
            threshold = float(np.interp(far, of_training, VAL_THRESHOLDS))
        accepted = distances[held_out] < threshold
        values.append(np.mean(accepted[same[held_out]]))
        fars.append(np.mean(accepted[~same[held_out]]))
        thresholds.append(threshold)
    return ValidationRate(
        float(np.mean(values)), float(np.std(values)), float(np.mean(fars)), np.array(thresholds)
    )
