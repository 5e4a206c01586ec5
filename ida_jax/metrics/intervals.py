"""Confidence intervals of figures: what the bootstrap gives, and its percentiles.

R resamples, F FARs.
"""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A confidence interval, in the unit of what it is of."""

    low: float
    high: float


class BootstrapPoint(NamedTuple):
    """One method at one FAR.

    Attributes:
      far: the FAR.
      tar: interval of the TAR.
      threshold: interval of the threshold.
    """

    far: float
    tar: Interval
    threshold: Interval


class BootstrapDifference(NamedTuple):
    """A method's TAR minus the baseline's at one FAR.

    Attributes:
      far: the FAR.
      tar: interval of the difference.
      share_above_0: the share of resamples in which the method's TAR is the higher.
      gain: the difference itself, of the pairs as they are.
    """

    far: float
    tar: Interval
    share_above_0: float
    gain: float


class Bootstrap(NamedTuple):
    """Intervals by method, and of the differences to the baseline.

    Attributes:
      over: what was resampled: "identities", "templates" or "pairs".
      units: how many of them there are.
      resamples: those that count; one without genuine or impostor pairs does not.
      methods: {method: a point for each FAR}.
      differences: {method: a difference for each FAR}, of all methods but the baseline.
    """

    over: str
    units: int
    resamples: int
    methods: dict[str, tuple[BootstrapPoint, ...]]
    differences: dict[str, tuple[BootstrapDifference, ...]]


class MeanBootstrap(NamedTuple):
    """Intervals of mean outcomes.

    Attributes:
      over: as in `Bootstrap`.
      units: as in `Bootstrap`.
      resamples: those that count; one without pairs does not.
      methods: {method: interval of its mean}.
      differences: {method: interval of its mean minus the baseline's}.
    """

    over: str
    units: int
    resamples: int
    methods: dict[str, Interval]
    differences: dict[str, Interval]


def percentile_intervals(samples: np.ndarray, level: float) -> list[Interval]:
    """The percentile interval of each column of samples [R, F]."""
    tail_share = (1 - level) / 2
    # The nearest sample: between −∞ and a score there is nothing to interpolate.
    ends = np.quantile(samples, [tail_share, 1 - tail_share], axis=0, method="nearest")
    return [Interval(float(low), float(high)) for low, high in ends.T]
