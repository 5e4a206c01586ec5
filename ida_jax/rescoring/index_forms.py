"""Each rule of `ida_jax.rescoring.terms` as an inner product, for vector indexes.

A vector index ranks by ⟨v(g), u(q)⟩, v of an enrolled face and u of a probe. Most rules are one:

    s = Σⱼ α_j(g) β_j(q) c + Σ_u n_u(g) w_u(q) + o(q)

with the scales α and β of the embedding, repeated J times, and U numbers n of the enrolled face. So
Z-norm and CSN take D + 1 dimensions, S- and AS-norm 2D + 1, and T-norm ranks as the cosine.

DAO adds logaddexp(a, b) with a = log F of the probe, b = n₀ that of the enrolled face. With
y = b − a it is (a + b)/2 + ln(2 cosh(y/2)), and ln cosh(y/2) is concave in y², so that its tangent
at any y² = ξ² lies on or above it (Jaakkola and Jordan 2000):

    logaddexp(a, b) ≤ (a + b)/2 + ln(2 cosh(ξ/2)) + λ (y² − ξ²)        λ = tanh(ξ/2) / (4ξ)

a quadratic in b, whose coefficients are the probe's own: D + 2 dimensions. At ξ = 0 it is
(a + b)/2 + ln 2 + y²/8, too high by at most y⁴/192. At ξ² = the mean of y² over the enrolled faces
its mean excess is the least: at τ = 50 a twelfth of that at ξ = 0, and 23 candidates suffice for
the best ten of 30,000 faces where that needs 5,290. It holds for every b, so that faces enrolled
later do not change it. The best quadratic over the faces' range of b has a smaller largest excess,
but needs that range and as many candidates; a cubic takes one more dimension and needs 19, at τ ≤ 4
as many (experiments/results/bench_index_bounds.json).

IDA-Q's has no such form: its last term is quadratic in the cosine.

All in float64. G enrolled faces, M probes, S values of a face, C constants, J copies of the
embedding, U numbers of an enrolled face.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class EnrolledPart(NamedTuple):
    """What an enrolled face brings.

    Attributes:
      scales: α, [G, J], above 0.
      numbers: n, [G, U].
    """

    scales: np.ndarray
    numbers: np.ndarray


class ProbePart(NamedTuple):
    """What a probe brings.

    Attributes:
      scales: β, [M, J].
      weights: w, [M, U].
      offset: o, [M].
      level: [M], a of logaddexp(a, n₀), of a form that is curved.
    """

    scales: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    level: np.ndarray | None = None


class IndexForm(NamedTuple):
    """A rule's two parts, each of (values [N, S], constants [C]).

    Attributes:
      curved: logaddexp(level, n₀) is added to the score, which is then bounded by its tangent.
    """

    enrolled: Callable[[np.ndarray, np.ndarray], EnrolledPart]
    probe: Callable[[np.ndarray, np.ndarray], ProbePart]
    curved: bool = False


def tangent(level: np.ndarray, mean: float, variance: float) -> tuple[np.ndarray, ...]:
    """The tangent above logaddexp(a, b), in x = b − mean: r₀ + r₁ x + r₂ x², for every real x.

    Args:
      level: a, [M].
      mean: of b over the enrolled faces.
      variance: of b; any number ≥ 0 gives an upper bound, the true one the tightest on average.

    Returns:
      r₀, r₁ and r₂, [M] each.
    """
    away = mean - level
    xi = np.sqrt(away**2 + variance)
    # tanh(ξ/2)/(4ξ) → 1/8 at 0.
    slope = np.tanh(np.maximum(xi, 1e-6) / 2) / (4 * np.maximum(xi, 1e-6))
    at_xi = xi / 2 + np.log1p(np.exp(-xi))
    # y² − ξ² = x² + 2 x (mean − a) − variance
    return (level + mean) / 2 + at_xi - slope * variance, 0.5 + 2 * slope * away, slope


def _ones(values: np.ndarray) -> np.ndarray:
    return np.ones((len(values), 1))


def _none(values: np.ndarray) -> np.ndarray:
    return np.empty((len(values), 0))


def _zeros(values: np.ndarray) -> np.ndarray:
    return np.zeros(len(values))


COSINE = IndexForm(
    lambda v, w: EnrolledPart(_ones(v), _none(v)),
    lambda v, w: ProbePart(_ones(v), _none(v), _zeros(v)),
)
DAO = IndexForm(
    lambda v, w: EnrolledPart(_ones(v), v),
    lambda v, w: ProbePart(w[0] * _ones(v), np.zeros_like(v), _zeros(v), v[:, 0]),
    curved=True,
)
# The norm's logarithm comes beside log F, and is linear.
DAO_NORM = IndexForm(
    lambda v, w: EnrolledPart(_ones(v), v),
    lambda v, w: ProbePart(
        w[0] * _ones(v), np.tile([0, -w[1]], (len(v), 1)), -w[1] * v[:, 1], v[:, 0]
    ),
    curved=True,
)
Z_NORM = IndexForm(
    lambda v, w: EnrolledPart(1 / v[:, 1:], -v[:, :1] / v[:, 1:]),
    lambda v, w: ProbePart(_ones(v), _ones(v), _zeros(v)),
)
T_NORM = IndexForm(
    COSINE.enrolled,
    lambda v, w: ProbePart(1 / v[:, 1:], _none(v), -v[:, 0] / v[:, 1]),
)
S_NORM = IndexForm(
    lambda v, w: EnrolledPart(
        np.concatenate([1 / v[:, 1:], _ones(v)], axis=1), -v[:, :1] / v[:, 1:]
    ),
    lambda v, w: ProbePart(
        np.concatenate([0.5 * _ones(v), 0.5 / v[:, 1:]], axis=1),
        0.5 * _ones(v),
        -0.5 * v[:, 0] / v[:, 1],
    ),
)
CSN = IndexForm(
    lambda v, w: EnrolledPart(_ones(v), v),
    lambda v, w: ProbePart(w[0] * _ones(v), _ones(v), v[:, 0] + w[1]),
)
