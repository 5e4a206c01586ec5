"""Intervals where few people decide a figure.

P pairs, U units of a pair (the identities or templates of its sides).

A percentile interval takes the resamples' spread for the truth's. It is an estimate from those
units that have errors at all: 28 rejected pairs of 5 people, one of whom has 15, tell of the spread
as little as 3 people do, however many others are in the list. So intervals are widened as Student's
t widens a normal one, by the effective number of units behind the rarer outcome (Hesterberg, The
American Statistician 2015, "expanded percentile", with the number of data points in its place).
experiments/bootstrap_coverage.py measures what that gives.
"""

import numpy as np
from scipy.special import ndtr, stdtrit

# With fewer units behind the errors even the widened intervals may hold the truth too rarely: those
# of TAR below 3, those of gains in the accuracy of a short list below about 5.
FEWEST_UNITS = 5


def units_behind(outcome: np.ndarray, units: np.ndarray) -> float:
    """The effective number of units behind the rarer outcome.

    With c_a the weight of unit a's wrong pairs, Σ_p (1 − o_p), that is (Σ c)² / Σ c², or the same
    of its right ones, Σ_p o_p, where that is less; 0 where there are none of a kind.

    Args:
      outcome: [P], 1 or True where right, 0 where wrong.
      units: int [P, U], from 0.
    """
    sides, count = units.T, int(units.max(initial=-1)) + 1
    right, pairs = (
        sum(np.bincount(side, weights=of, minlength=count) for side in sides)
        for of in (np.asarray(outcome, np.float64), np.ones(len(units)))
    )
    return min(_effective(right), _effective(pairs - right))


def tail_share(level: float, units: float) -> float:
    """The share of resamples beyond each end: Φ(−√(n/(n−1)) t_{n−1}), n the number of units.

    t is Student's quantile at (1 + level) / 2. The share is (1 − level) / 2 for many units; for two
    or fewer, which count as two, it is so little that the interval holds all resamples.
    """
    return float(ndtr(-_reach(level, units)))


def stretch(level: float, units: np.ndarray) -> np.ndarray:
    """√(n/(n−1)) t_{n−1} / z, by which normal intervals are widened, n ≥ 2 the number of units."""
    return _reach(level, units) / _reach(level, np.inf)


def _reach(level: float, units: np.ndarray | float) -> np.ndarray:
    """√(n/(n−1)) t_{n−1} at (1 + level) / 2."""
    freedom = np.clip(np.asarray(units, np.float64) - 1, 1.0, 1e9)
    return np.sqrt(1 + 1 / freedom) * stdtrit(freedom, (1 + level) / 2)


def _effective(weights: np.ndarray) -> float:
    """(Σ c)² / Σ c²; 0 where all are 0."""
    squares = float(weights @ weights)
    return float(weights.sum() ** 2 / squares) if squares > 1e-12 else 0.0
