"""Each face's scores with a cohort: the statistics of Z-, T-, S- and AS-norm.

The cohort is the anchor set. Z-, T- and S-norm take all of it (`cohort_statistics`). AS-norm is the
variant in which each side selects its own cohort, its n most similar anchors ("AS-norm1", Matějka
et al. 2017; usually n = 300): `nearest_statistics` of the similarities of `support_sets(…, k=n)`.
The deviation divides by n (ddof = 0); another ddof scales every σ, and with it every score, alike,
so that it changes no ranking. Nothing is subtracted from the embeddings before their cosines.

N faces, A anchors, D embedding, n cohort scores of a face.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.common.validation import require_unit

# The size of a face's cohort in AS-norm where none was given, of `search.usual_neighbours`.
USUAL_COHORT = 300
_BLOCK = 8192
# Cosines in float32 differ by 1e-7 by rounding alone; faces' deviations are 0.03 and more.
_LEAST_STD = 1e-6


class CohortStatistics(NamedTuple):
    """Mean and deviation of each face's cohort scores, float32 [N] each."""

    mean: np.ndarray
    std: np.ndarray


class CohortMoments(NamedTuple):
    """What the statistics of the whole cohort are computed from.

    Attributes:
      mean: float64 [D], m̄, the anchors' mean.
      covariance: float64 [D, D], Σ = mean of (a − m̄)(a − m̄)ᵀ.
      count: A.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def cohort_moments(anchors: AnchorSet) -> CohortMoments:
    """Mean and covariance of the anchors, float64, in one pass by blocks.

    The anchors may be memory-mapped and larger than memory.
    """
    count = len(anchors)
    total = np.zeros(anchors.width)
    products = np.zeros((anchors.width, anchors.width))
    starts = range(0, count, _BLOCK)
    for start in progress_bar(starts, desc="cohort", unit="block", delay=2, leave=False):
        block = anchors.embeddings[start : start + _BLOCK].astype(np.float64)
        total += np.sum(block, axis=0)
        products += block.T @ block
    mean = total / count
    # In float64 the difference keeps every digit that a deviation above _LEAST_STD needs.
    return CohortMoments(mean, products / count - np.outer(mean, mean), count)


def cohort_statistics(
    faces: np.ndarray, moments: CohortMoments, *, ddof: int = 0
) -> CohortStatistics:
    """Mean and deviation of each face's scores ⟨f, a⟩ with the whole cohort.

    In closed form, so that the N×A scores never exist: μ = ⟨f, m̄⟩ and σ² = fᵀΣf.

    Args:
      faces: float32 [N, D], unit rows.
      moments: the anchors' `cohort_moments`.
      ddof: the variance is divided by A − ddof.
    """
    faces, width = require_unit(faces), len(moments.mean)
    if faces.shape[1] != width:
        raise UserError(
            f"the faces' embeddings are {faces.shape[1]} wide, the anchors' {width}: "
            "both must come from the same model"
        )
    mean, variance = np.empty(len(faces)), np.empty(len(faces))
    for start in range(0, len(faces), _BLOCK):
        rows = slice(start, start + _BLOCK)
        own = faces[rows].astype(np.float64)
        mean[rows] = own @ moments.mean
        variance[rows] = np.einsum("nd,nd->n", own @ moments.covariance, own)
    return _statistics(mean, variance, moments.count, ddof)


def nearest_statistics(similarities: np.ndarray, *, ddof: int = 0) -> CohortStatistics:
    """AS-norm's: mean and deviation of each face's n highest cohort scores.

    Args:
      similarities: float32 [N, n], as `ida_jax.anchors.search.support_sets` gives them for k = n.
      ddof: the variance is divided by n − ddof.

    Raises:
      UserError: n below 2, ddof outside 0 … n − 1, scores without spread.
    """
    count, n = similarities.shape
    mean, variance = np.empty(count), np.empty(count)
    for start in range(0, count, _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = similarities[rows].astype(np.float64)
        mean[rows], variance[rows] = np.mean(scores, axis=1), np.var(scores, axis=1)
    return _statistics(mean, variance, n, ddof)


def _statistics(mean: np.ndarray, variance: np.ndarray, n: int, ddof: int) -> CohortStatistics:
    """From each face's mean and variance (ddof = 0) over n scores."""
    if n < 2 or not 0 <= ddof < n:
        raise UserError(
            f"a cohort of {n} anchors with ddof = {ddof} was asked for: expected at least 2 "
            "anchors, and a ddof of 0 or more below their number"
        )
    std = np.sqrt(np.maximum(variance, 0) * (n / (n - ddof)))
    flat = np.flatnonzero(~(std > _LEAST_STD))
    if flat.size:
        raise UserError(
            f"the {n} cohort scores of face {flat[0]} have no spread (σ = {std[flat[0]]:.1g}): "
            "expected anchors of different people; take other anchors or more of them"
        )
    return CohortStatistics(mean.astype(np.float32), std.astype(np.float32))
