"""Scores as evidence: log-likelihood ratios, their cost, and maps fitted to scores.

G genuine and n impostor scores, higher meaning more alike. An LLR is the natural logarithm of
p(score | genuine) / p(score | impostor). A NaN score carries no evidence: it counts in G or n,
costs one bit as an LLR of 0 would, and takes no part in a fit.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import as_scores

_CHUNK = 1 << 20
# Bounds the slope where a threshold separates all scores (the loss then falls without end); on
# other scores it moves the slope by less than a millionth.
_RIDGE = 4e-9
_NEWTON_STEPS = 100


class AffineMap(NamedTuple):
    """LLR = slope · score + offset, with slope > 0."""

    slope: float
    offset: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return self.slope * scores + self.offset


class IsotonicMap(NamedTuple):
    """LLR by linear interpolation between knots, constant outside them; never decreasing.

    Attributes:
      knots: float64 [K], scores, strictly ascending.
      llr: float64 [K], the LLR at each.
    """

    knots: np.ndarray
    llr: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.interp(scores, self.knots, self.llr)


def cllr(genuine_llr: ArrayLike, impostor_llr: ArrayLike) -> float:
    """Cllr = ½ [mean log₂(1 + e^−λ) over genuine + mean log₂(1 + e^λ) over impostor], in bits.

    0 is perfect evidence, 1 the cost of LLRs of 0, more is misleading; infinite where an infinite
    LLR is wrong. Source: Brümmer and du Preez, Application-independent evaluation of speaker
    detection, 2006.

    Args:
      genuine_llr: [G] natural-log likelihood ratios.
      impostor_llr: [n].

    Raises:
      UserError: no scores of a kind.
    """
    genuine, impostor = as_scores(genuine_llr, impostor_llr)
    costs = []
    for llr, sign in ((genuine, -1), (impostor, 1)):
        total = 0.0
        for chunk in _chunks(llr):
            total += float(np.logaddexp(0, sign * np.where(np.isnan(chunk), 0, chunk)).sum())
        costs.append(total / llr.size)
    return sum(costs) / (2 * math.log(2))


def min_cllr(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """The least Cllr that any non-decreasing map of these scores to LLRs reaches, in bits.

    The best map gives each block of pool-adjacent-violators with g genuine and i impostor scores
    the LLR log((g/G) / (i/n)). It only depends on the scores' order, and measures discrimination;
    Cllr − min-Cllr is the loss of calibration.

    Raises:
      UserError: no scores of a kind.
    """
    genuine, impostor = as_scores(genuine, impostor)
    pooled = pool(score_groups(genuine, impostor))
    ratio = genuine.size / impostor.size
    costs = []
    for own, other, odds in (
        (pooled.genuine, pooled.impostor, ratio),
        (pooled.impostor, pooled.genuine, 1 / ratio),
    ):
        some = own > 0
        costs.append(float(np.sum(own[some] * np.log1p(odds * other[some] / own[some]))))
    missing = [np.count_nonzero(np.isnan(scores)) * math.log(2) for scores in (genuine, impostor)]
    means = [
        (cost + nan) / scores.size
        for cost, nan, scores in zip(costs, missing, (genuine, impostor), strict=True)
    ]
    return sum(means) / (2 * math.log(2))


def fit_logistic(genuine: ArrayLike, impostor: ArrayLike, *, prior: float = 0.5) -> AffineMap:
    """The affine map of least prior-weighted logistic loss, by Newton's method in float64.

    Minimises π/G Σ log(1 + e^−(λ+ℓ)) + (1−π)/n Σ log(1 + e^(λ+ℓ)) + 2·10⁻⁹ π(1−π) w² over
    λ = slope · score + offset, with ℓ = log(π/(1−π)) and w the slope in standardised scores; at
    π = ½ the loss is Cllr up to a constant factor. The last term keeps separable scores from an
    infinite slope.
    Only finite scores are fitted.

    Args:
      genuine: [G] scores.
      impostor: [n] scores.
      prior: π in (0, 1): where between the two kinds the map is to be most accurate. The LLR itself
        carries no prior.
    """
    _log_odds(prior)
    kinds = [_finite(scores, kind) for scores, kind in _both(genuine, impostor)]
    lowest, highest = min(k.min() for k in kinds), max(k.max() for k in kinds)
    if lowest == highest:
        raise UserError(f"all scores are {lowest:g}, expected some that differ: nothing to fit")
    means = [float(np.mean(scores, dtype=np.float64)) for scores in kinds]
    center = (means[0] + means[1]) / 2
    squares = [sum(float(np.sum((c - center) ** 2)) for c in _chunks(s)) / s.size for s in kinds]
    scale = math.sqrt(sum(squares) / 2)
    problem = _Problem(kinds, prior, center, scale)
    point = np.zeros(2)
    value, gradient, hessian = _loss(point, problem)
    for _ in range(_NEWTON_STEPS):
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        if decrement < 1e-16:
            break
        length = 1.0
        while True:
            candidate = point - length * step
            next_loss = _loss(candidate, problem)
            # So near the least, the loss itself is rounded.
            if next_loss[0] <= value or decrement < 1e-10 or length < 1e-6:
                break
            length /= 2
        point, (value, gradient, hessian) = candidate, next_loss
    slope = point[0] / scale
    if not slope > 0:
        raise UserError(
            "genuine scores are no higher than impostor ones: check the labels, and pass "
            "similarities, not distances"
        )
    return AffineMap(float(slope), float(point[1] - slope * center))


def fit_isotonic(genuine: ArrayLike, impostor: ArrayLike) -> IsotonicMap:
    """The non-decreasing map of least logistic loss (pool-adjacent-violators), with finite ends.

    To keep the ends finite, one genuine and one impostor score are added below all scores and above
    all scores, in the order that each end likes least (Laplace's rule of succession). LLRs then lie
    within ± log((G+2)(n+2)) or so. Inside a block the map is level, so that scores of one block
    become ties; between blocks it is linear. Only finite scores are fitted.

    Raises:
      UserError: no finite scores of a kind.
    """
    genuine, impostor = (_finite(scores, kind) for scores, kind in _both(genuine, impostor))
    groups = score_groups(genuine, impostor)
    ends = {"genuine": [1, 0], "impostor": [0, 1], "low": [np.nan] * 2, "high": [np.nan] * 2}
    pooled = pool(
        Blocks(*(np.concatenate([ends[f], getattr(groups, f), ends[f]]) for f in Blocks._fields))
    )
    llr = np.log(pooled.genuine / pooled.impostor) - math.log(
        (genuine.size + 2) / (impostor.size + 2)
    )
    llr = np.maximum.accumulate(llr)  # blocks of equal shares may differ in the last digit
    real = ~np.isnan(pooled.low)
    knots = np.stack([pooled.low, pooled.high], axis=1)[real]
    once = np.stack([np.ones(len(knots), bool), knots[:, 0] < knots[:, 1]], axis=1)
    return IsotonicMap(knots[once], np.repeat(llr[real], 2).reshape(-1, 2)[once])


def percent(llr: ArrayLike, *, prior: float = 0.5) -> np.ndarray:
    """100 · σ(LLR + log(π/(1−π))): the chance in percent that a pair is genuine.

    Args:
      llr: natural-log likelihood ratios; NaN stays NaN.
      prior: π in (0, 1), the share of genuine pairs where the percentage is shown.

    Raises:
      UserError: a prior outside (0, 1).
    """
    from scipy.special import expit

    return 100 * expit(np.asarray(llr) + _log_odds(prior))


class _Problem(NamedTuple):
    """`fit_logistic`'s: the finite scores of both kinds, and what standardises them."""

    kinds: list[np.ndarray]
    prior: float
    center: float
    scale: float


def _loss(point: np.ndarray, problem: _Problem) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient and Hessian of `fit_logistic`'s loss at (slope, offset)."""
    kinds, prior, center, scale = problem
    log_odds = _log_odds(prior)
    ridge = _RIDGE * prior * (1 - prior)
    value = ridge / 2 * point[0] ** 2
    gradient = np.array([ridge * point[0], 0.0])
    hessian = np.diag([ridge, 0.0])
    for scores, share, sign in zip(kinds, (prior, 1 - prior), (-1, 1), strict=True):
        weight = share / scores.size
        for chunk in _chunks(scores):
            z = (chunk - center) / scale
            margin = sign * (point[0] * z + (point[1] + log_odds))
            small = np.exp(-np.abs(margin))
            value += weight * float(np.sum(np.maximum(margin, 0) + np.log1p(small)))
            wrong = np.where(margin > 0, 1, small) / (1 + small)
            curvature = small / (1 + small) ** 2
            gradient += weight * sign * np.array([wrong @ z, wrong.sum()])
            cross = curvature @ z
            hessian += weight * np.array([[(curvature * z) @ z, cross], [cross, curvature.sum()]])
    return value, gradient, hessian


def _both(genuine: ArrayLike, impostor: ArrayLike) -> Iterator[tuple[np.ndarray, str]]:
    return zip(as_scores(genuine, impostor), ("genuine", "impostor"), strict=True)


def _finite(scores: np.ndarray, kind: str) -> np.ndarray:
    finite = np.isfinite(scores)
    if not finite.any():
        raise UserError(f"no {kind} score is finite, expected at least one to fit")
    return scores if finite.all() else scores[finite]


def _chunks(scores: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, scores.size, _CHUNK):
        yield scores[start : start + _CHUNK].astype(np.float64)


def _log_odds(prior: float) -> float:
    if not 0 < prior < 1:
        raise UserError(f"the prior is {prior}, expected one above 0 and below 1")
    return math.log(prior / (1 - prior))


class Blocks(NamedTuple):
    """Runs of scores, ascending: counts of both kinds, lowest and highest score, float64 each."""

    genuine: np.ndarray
    impostor: np.ndarray
    low: np.ndarray
    high: np.ndarray


def score_groups(genuine: np.ndarray, impostor: np.ndarray) -> Blocks:
    """Each distinct genuine score with its ties, and each run of impostors between two of them.

    The isotonic fit is level over neighbours of equal value, so a run of impostors is one group:
    millions of impostors make no more groups than twice the genuine scores. NaN is left out.

    Args:
      genuine: [G] scores in any order.
      impostor: [n] scores; ascending ones are used without a copy.
    """
    genuine = genuine[~np.isnan(genuine)]
    impostor = impostor[~np.isnan(impostor)]
    if not np.all(impostor[:-1] <= impostor[1:]):
        impostor = np.sort(impostor)
    values, count = np.unique(genuine, return_counts=True)
    start = np.searchsorted(impostor, values, side="left")
    stop = np.searchsorted(impostor, values, side="right")
    run_start, run_stop = np.append(0, stop), np.append(start, impostor.size)
    runs = run_stop - run_start
    edges = np.append(impostor, np.nan)  # an empty run at the end has no score
    low = _interleaved(edges[run_start], values)
    high = _interleaved(edges[run_stop - 1], values)
    groups = Blocks(
        _interleaved(np.zeros(runs.size), count), _interleaved(runs, stop - start), low, high
    )
    some = groups.genuine + groups.impostor > 0
    return Blocks(*(field[some] for field in groups))


def pool(groups: Blocks) -> Blocks:
    """Pools neighbours until the share of genuine scores never falls from a block to the next."""
    from scipy.optimize import isotonic_regression

    total = groups.genuine + groups.impostor
    if not total.size:
        return groups
    starts = isotonic_regression(groups.genuine / total, weights=total).blocks[:-1]
    return Blocks(
        np.add.reduceat(groups.genuine, starts),
        np.add.reduceat(groups.impostor, starts),
        np.fmin.reduceat(groups.low, starts),
        np.fmax.reduceat(groups.high, starts),
    )


def _interleaved(runs: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.empty(runs.size + values.size)
    out[0::2], out[1::2] = runs, values
    return out
