"""Percentile intervals of several methods' rates, from what they are in shared resamples.

M methods, R resamples, F places (FARs, say).
"""

from collections.abc import Sequence

import numpy as np

from ida_jax.metrics.comparison import Compared, compare
from ida_jax.metrics.few_units import tail_share
from ida_jax.metrics.roc import Interval


def rate_intervals(
    names: Sequence[str],
    drawn: np.ndarray,
    observed: np.ndarray,
    behind: np.ndarray,
    *,
    baseline: str | None,
    level: float,
) -> tuple[dict[str, list[Interval]], dict[str, list[Interval]], dict[str, tuple[Compared, ...]]]:
    """{method: one for each place}: intervals, those of gains, and comparisons.

    Args:
      drawn: [R, M, F] rates in the resamples.
      observed: [M, F], those of the pairs as they are.
      behind: [M, F], the effective number of units behind each.
    """
    base = names.index(baseline) if baseline in names else None
    intervals, gains, compared = {}, {}, {}
    for m, name in enumerate(names):
        shares = np.array([tail_share(level, n) for n in behind[m]])
        intervals[name] = percentile_intervals(drawn[:, m], shares)
        if base is not None and m != base:
            either = np.maximum(behind[m], behind[base])
            shares = np.array([tail_share(level, n) for n in either])
            gains[name] = percentile_intervals(drawn[:, m] - drawn[:, base], shares)
    if len(names) > 1:
        of_methods = compare(drawn, observed, units=behind, baseline=base, level=level)
        compared = dict(zip(names, map(tuple, of_methods), strict=True))
    return intervals, gains, compared


def percentile_intervals(samples: np.ndarray, shares: np.ndarray) -> list[Interval]:
    """The middle of each column of samples [R, F], without its share [F] at either end."""
    ordered = np.sort(samples, axis=0)
    last, columns = len(samples) - 1, np.arange(samples.shape[1])
    # The nearest sample: between −∞ and a score there is nothing to interpolate.
    low, high = (ordered[np.rint(q * last).astype(int), columns] for q in (shares, 1 - shares))
    return [Interval(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]
