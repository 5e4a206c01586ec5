"""How far a regressed log F can be believed, judged on people that it was not trained on.

x is the regressed log F, y the searched one, z the log F of a face among the other held-out people,
who are as new to the module as it is. Every person has the weight 1, however many their faces.

    log F = offset + slope · x      least squares; the slope times 1 − (its standard error / slope)²
    R² = 1 − Σ w (y − offset₋ − slope₋ x)² / Σ w (y − ȳ)²      with the line of the other folds

Intervals are of the bootstrap over people. Where they leave open whether x says anything of y or of
z, the slope is 0: all faces get one F, and pairs rank by their cosine.

z is there because y can be foretold without any structure: 3,000 anchors drawn at random have a
mean direction, and a module that has learnt it has an R² above 0 and says nothing of other faces.

N faces, P people, R resamples.
"""

from typing import NamedTuple

import numpy as np

_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class DensityCalibration(NamedTuple):
    """The line from the regressed to the searched log F, and what it was judged by.

    Attributes:
      slope, offset: of the line; the slope is 0 where `doubt` is not "".
      r2: of the calibrated log F, on the people of the other folds.
      crowding: the correlation of x with z.
      bias: mean of the calibrated log F − y on the people of the other folds, in standard
        deviations of y.
      raw_slope: before it is shrunk.
      raw_r2, raw_bias: those of x itself.
      doubt: why log F is left out of scores; "" where it is not.
    """

    slope: float
    offset: float
    r2: Estimate
    crowding: Estimate
    bias: float
    raw_slope: Estimate
    raw_r2: float
    raw_bias: float
    doubt: str


def person_weights(people: np.ndarray) -> np.ndarray:
    """float64 [N]: 1 / the number of the person's faces."""
    _, of_face, sizes = np.unique(people, return_inverse=True, return_counts=True)
    return 1 / sizes[of_face]


def fitted_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """(slope, offset) of the weighted least squares of y on x; slope 0 where x is constant."""
    mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
    variance = np.average((x - mean_x) ** 2, weights=weights)
    slope = np.average((x - mean_x) * (y - mean_y), weights=weights) / variance if variance else 0.0
    return float(slope), float(mean_y - slope * mean_x)


def explained(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """R² of the best line from x to y, their squared correlation; 0 where x or y is constant."""
    slope, offset = fitted_line(x, y, weights)
    variance = np.average((y - np.average(y, weights=weights)) ** 2, weights=weights)
    rest = np.average((y - offset - slope * x) ** 2, weights=weights)
    return float(1 - rest / variance) if variance else 0.0


def calibrate_density(
    regressed: np.ndarray,
    searched: np.ndarray,
    crowding: np.ndarray,
    people: np.ndarray,
    folds: np.ndarray,
    *,
    seed: int = 0,
) -> DensityCalibration:
    """The calibration of log F by faces of held-out people.

    Args:
      regressed: x [N].
      searched: y [N].
      crowding: z [N].
      people: int [N].
      folds: int [N], which of two or more modules gave x; a person is in one fold.
      seed: of the resamples.
    """
    x, y, z = (np.asarray(values, np.float64) for values in (regressed, searched, crowding))
    weights = person_weights(people)
    errors = np.empty_like(y)
    for fold in np.unique(folds):
        inside = folds == fold
        slope, offset = fitted_line(x[~inside], y[~inside], weights[~inside])
        errors[inside] = offset + slope * x[inside] - y[inside]
    # A fold's level says nothing of which of its faces are crowded.
    u, v = (_within_folds(values, folds, weights) for values in (x, z))
    columns = (np.ones_like(x), x, y, x * x, x * y, y * y, errors**2, u, v, u * u, u * v, v * v)
    names, of_face = np.unique(people, return_inverse=True)
    sums = np.zeros((len(names), len(columns)))
    np.add.at(sums, of_face, weights[:, None] * np.stack(columns, axis=1))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    whole, resampled = _figures(sums.sum(axis=0)), _figures(drawn @ sums)
    r2, crowding_, slope_ = (
        Estimate(float(value), *map(float, np.percentile(values, _PERCENTILES)))
        for value, values in zip(whole, resampled, strict=True)
    )
    doubt = _doubt(r2, crowding_, slope_)
    error = float(np.std(resampled[2]))
    slope = 0.0 if doubt else slope_.value * max(0.0, 1 - (error / slope_.value) ** 2)
    mean_x, mean_y = (float(np.average(values, weights=weights)) for values in (x, y))
    deviation = float(np.sqrt(np.average((y - mean_y) ** 2, weights=weights))) or 1.0
    return DensityCalibration(
        slope=slope,
        offset=mean_y - slope * mean_x,
        r2=r2,
        crowding=crowding_,
        bias=float(np.average(errors, weights=weights)) / deviation,
        raw_slope=slope_,
        raw_r2=float(1 - np.average((x - y) ** 2, weights=weights) / deviation**2),
        raw_bias=(mean_x - mean_y) / deviation,
        doubt=doubt,
    )


def _within_folds(values: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    out = np.empty_like(values)
    for fold in np.unique(folds):
        inside = folds == fold
        out[inside] = values[inside] - np.average(values[inside], weights=weights[inside])
    return out


def _figures(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R², correlation with the crowding, and slope, of sums [..., columns] over people."""
    n, x, y, xx, xy, yy, ee, u, v, uu, uv, vv = np.moveaxis(sums, -1, 0)
    r2 = 1 - _ratio(ee, yy - y * y / n, otherwise=1.0)
    both = np.sqrt(np.maximum(uu - u * u / n, 0) * np.maximum(vv - v * v / n, 0))
    return (
        r2,
        _ratio(uv - u * v / n, both, otherwise=0.0),
        _ratio(xy - x * y / n, xx - x * x / n, otherwise=0.0),
    )


def _ratio(over: np.ndarray, under: np.ndarray, *, otherwise: float) -> np.ndarray:
    tiny = under <= 1e-12
    return np.where(tiny, otherwise, over / np.where(tiny, 1, under))


def _doubt(r2: Estimate, crowding: Estimate, slope: Estimate) -> str:
    if not (r2.low > 0 and slope.low > 0):
        return f"R² on held-out people is {r2.value:.3f} [{r2.low:.3f}, {r2.high:.3f}]"
    if not crowding.low > 0:
        return (
            "where it sees a crowd, held-out people do not crowd (correlation "
            f"{crowding.value:.3f} [{crowding.low:.3f}, {crowding.high:.3f}])"
        )
    return ""
