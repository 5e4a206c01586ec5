"""Several methods compared at once: simultaneous intervals of their gains, and which may be best.

M methods, R resamples, F places (FARs, say). Both rules take the methods' figures in the same
resamples, [R, M, F], so that they know how the methods vary together. A family is the M methods at
one place; places are not corrected for one another.

Of a dozen methods that are all alike one lies outside an ordinary 95 % interval about every second
time, and the highest of a dozen is too high. So:

- A gain's simultaneous interval is g ± c·s, s the standard deviation of its resampled values g*, c
  the quantile at the level of max over methods of |g* − g| / s (Westfall & Young 1993; Romano &
  Wolf, Econometrica 2005, the single step). All M − 1 intervals hold at once with that chance.
- A method is among the best unless some other lies above it by more than chance among all M
  allows: unless max over j of (f_j − f_m) / s_jm exceeds the quantile of the same maximum of the
  centred resamples. Each method is tested as the best one, and the one that truly is passes its
  test with the chance of the level, so that the set holds it with that chance: no further
  correction is due (Hsu, Annals of Statistics 1981).

With few units behind the errors the standard deviation comes out too small and is itself uncertain.
Both rules are widened by `few_units.stretch`, at the larger of the two methods' numbers of units.
`rate_intervals` gives them beside the percentile intervals of each method.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ida_jax.metrics.few_units import stretch, tail_share
from ida_jax.metrics.roc import Interval

# Rates that differ by less are equal.
_ROUNDING = 1e-12


class Compared(NamedTuple):
    """One method among several at one place.

    Attributes:
      among_best: it may be the best: no other lies above it by more than chance.
      gain: the simultaneous interval of its figure minus the baseline's; None for the baseline, and
        where there is none.
    """

    among_best: bool
    gain: Interval | None


def compare(
    drawn: np.ndarray,
    observed: np.ndarray,
    *,
    units: np.ndarray,
    baseline: int | None,
    level: float = 0.95,
) -> list[list[Compared]]:
    """[M][F]: all methods compared with the baseline, and each as the best, at each place.

    Args:
      drawn: float64 [R, M, F], the figures in each resample, rates; higher is better.
      observed: float64 [M, F], the figures of the pairs as they are.
      units: float64 [M, F], the effective number of units behind each (`few_units.units_behind`).
      baseline: the row of the method that the others are compared with; None for none.
      level: the chance with which all gains' intervals hold, and the set holds the best.
    """
    places = []
    for at, seen, behind in zip(np.moveaxis(drawn, 2, 0), observed.T, units.T, strict=True):
        best = among_best(at, seen, behind, level=level)
        gains: Sequence[Interval | None] = [None] * seen.size
        if baseline is not None:
            gains = simultaneous_gains(at, seen, behind, baseline=baseline, level=level)
        places.append(list(map(Compared, best, gains)))
    return [list(of_method) for of_method in zip(*places, strict=True)]


def simultaneous_gains(
    drawn: np.ndarray,
    observed: np.ndarray,
    units: np.ndarray,
    *,
    baseline: int,
    level: float = 0.95,
) -> list[Interval | None]:
    """[M]: the intervals of all gains over the baseline at once, within [−1, 1]; None for its own.

    Args:
      drawn: float64 [R, M].
      observed, units: float64 [M].
      baseline, level: as `compare`.
    """
    gain = observed - observed[baseline]
    errors, deviation = _errors(drawn - drawn[:, baseline, None], gain)
    critical = np.quantile(np.abs(errors).max(axis=1), level)
    reach = critical * deviation * stretch(level, np.maximum(units, units[baseline]))
    ends = np.clip(np.stack([gain - reach, gain + reach], axis=1), -1, 1).tolist()
    return [None if m == baseline else Interval(*pair) for m, pair in enumerate(ends)]


def among_best(
    drawn: np.ndarray, observed: np.ndarray, units: np.ndarray, *, level: float = 0.95
) -> list[bool]:
    """[M]: whether each method may be the best; the one with the highest figure always may.

    Args:
      drawn: float64 [R, M].
      observed, units: float64 [M].
      level: as `compare`.
    """
    possible = []
    for m in range(observed.size):
        above = observed - observed[m]
        errors, deviation = _errors(drawn - drawn[:, m, None], above)
        critical = max(np.quantile(errors.max(axis=1), level), 0.0)
        allowed = critical * deviation * stretch(level, np.maximum(units, units[m]))
        possible.append(bool(np.all(above <= allowed + _ROUNDING)))
    return possible


def _errors(drawn: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(drawn − observed) / s [R, M], 0 where nothing varies, and s [M]."""
    deviation = drawn.std(axis=0, ddof=1)
    deviation[deviation < _ROUNDING] = 0.0
    errors = (drawn - observed) / np.where(deviation, deviation, np.inf)
    return errors, deviation


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
