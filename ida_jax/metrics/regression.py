"""How well a regressed density follows the searched one.

N faces.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


class RegressionQuality(NamedTuple):
    """Agreement of a prediction with its target.

    Attributes:
      r2: 1 − Σ(y − ŷ)² / Σ(y − ȳ)², the share of the target's variance that is explained; 1 is
        perfect, 0 is no better than the mean.
      rank_correlation: Spearman's ρ.
    """

    r2: float
    rank_correlation: float


def regression_quality(predicted: ArrayLike, target: ArrayLike) -> RegressionQuality:
    """R² and Spearman's rank correlation of [N] predictions; NaN where the target is constant."""
    predicted, target = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if np.ptp(target) == 0 or np.ptp(predicted) == 0:
        return RegressionQuality(float("nan"), float("nan"))
    r2 = 1 - np.sum((target - predicted) ** 2) / np.sum((target - target.mean()) ** 2)
    correlation = np.corrcoef(rankdata(predicted), rankdata(target))[0, 1]
    return RegressionQuality(float(r2), float(correlation))
