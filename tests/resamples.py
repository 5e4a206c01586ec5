"""The bootstrap over units written out slowly, for tests."""

import math

import numpy as np
from scipy import stats


def drawn_counts(seed, units, resamples):
    """How often each unit comes in each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(units, size=units), minlength=units)


def times(counts, pair):
    """How often a pair is written out."""
    within = len(set(pair)) == 1
    return counts[pair[0]] if within else counts[pair[0]] * counts[pair[1]]


def behind(outcomes, pairs):
    """The effective number of units behind the rarer of right (1) and wrong (0) outcomes."""
    numbers = []
    for kind in (1, 0):
        weights = {}
        for outcome, pair in zip(outcomes, pairs, strict=True):
            for unit in pair:
                weights[unit] = weights.get(unit, 0.0) + abs(float(outcome) - (1 - kind))
        squares = sum(weight**2 for weight in weights.values())
        numbers.append(sum(weights.values()) ** 2 / squares if squares else 0.0)
    return min(numbers)


def t_quantile(units):
    """By how many deviations a 95 % interval reaches out, n units taken for n observations."""
    n = max(units, 2.0)
    return math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)


def summarised(samples, units=None):
    """[(low, high)] of samples [R, F], each end the nearest sample.

    They leave out 2.5 % at either end, or what a normal leaves beyond Student's t of [F] units.
    """
    ordered = np.sort(np.array(samples), axis=0)
    last, ends = len(ordered) - 1, []
    for k, column in enumerate(ordered.T):
        share = 0.025 if units is None else stats.norm.sf(t_quantile(units[k]))
        ends.append((column[round(share * last)], column[round((1 - share) * last)]))
    return ends
