"""The bootstrap over units written out slowly, for tests."""

import numpy as np


def drawn_counts(seed, units, resamples):
    """How often each unit comes in each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(units, size=units), minlength=units)


def times(counts, pair):
    """How often a pair is written out."""
    within = len(set(pair)) == 1
    return counts[pair[0]] if within else counts[pair[0]] * counts[pair[1]]


def summarised(samples):
    """[(low, high)] of samples [R, F], each end the nearest sample."""
    ordered = np.sort(np.array(samples), axis=0)
    last = len(ordered) - 1
    return [(column[round(0.025 * last)], column[round(0.975 * last)]) for column in ordered.T]
