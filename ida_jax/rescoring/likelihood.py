"""Pairs by the mutual likelihood of probabilistic embeddings (PFE), alone and under IDA.

The MLS (`ida_jax.ops.mutual_likelihood`) may take the cosine's place in the paper's Eq. 4. On the
cosine's scale s = scale · MLS (`likelihood_scale`), the support set is the k anchors of the highest
s (`nearest_by_likelihood`), log F is `density.log_density_of` their s, and the score of a pair τ·s
+ logaddexp(log F₁, log F₂), `pairs.scores_of_cosines` with `terms.dao_terms`. What s has beside the
cosine where all variances are equal, a constant, is in s once with +τ and in log F with −τ.

σ̄² is the anchors' harmonic mean variance: where all variances are equal the result is IDA-R to the
last digit, so that τ keeps its meaning.

N faces, A anchors, D embedding, P pairs, K support.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from ida_jax.common.devices import by_blocks, on_cpu
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_log_variances, require_unit
from ida_jax.metrics.roc import SplitScores
from ida_jax.ops.hypersphere import blockwise_top_k
from ida_jax.ops.mutual_likelihood import mls_matrix
from ida_jax.rescoring.pairs import DEVICE_GATHER_BLOCKS, checked_pairs
from ida_jax.rescoring.terms import FaceTerms, cosine_terms
from ida_jax.rescoring.tiles import checked_labels, split_all_pairs

# Few sizes, as in `pairs`. On a CPU the gathered rows of a block must stay in cache.
_PAIR_BLOCKS = (64, 2048)
# Faces, and anchors or faces, at once. On a CPU a block of scores must stay in cache.
_TILE = (64, 512)
DEVICE_TILE = (512, 4096)


def likelihood_scale(log_variances: np.ndarray) -> float:
    """σ̄², which brings the MLS to the cosine's scale: the variances' harmonic mean 1 / mean(1/σ²).

    Where all variances are σ², unit means give

        MLS = −‖μ₁ − μ₂‖² / 2σ² − D log 2σ² = cos / σ² + constant,

    so that σ² · MLS has slope 1 in the cosine. (The article's score, ½ MLS, would need 2σ².) The
    constant cancels in DAO. The harmonic mean, since σ² enters as its reciprocal.

    Args:
      log_variances: [A, D], log σ² of the anchors; may be memory-mapped.

    Raises:
      UserError: no [A, D] with A > 0, or a log-variance that is not within ±20, its row named.
    """
    log_variances = require_log_variances(log_variances)
    if not log_variances.size:
        raise UserError(f"log-variances are {list(log_variances.shape)}: expected one row at least")
    block = max(1, (1 << 20) // log_variances.shape[1])
    total = sum(
        np.sum(np.exp(-log_variances[start : start + block].astype(np.float64)))
        for start in range(0, len(log_variances), block)
    )
    return float(log_variances.size / total)


def score_pairs_mls(
    means: np.ndarray, log_variances: np.ndarray, pairs: np.ndarray, *, scale: float = 1.0
) -> np.ndarray:
    """scale · MLS of each pair, float32 [P].

    Args:
      means: float32 [N, D], unit rows.
      log_variances: float32 [N, D], log σ².
      pairs: int [P, 2], rows of both.
      scale: 1 for the MLS itself, `likelihood_scale` for the cosine's scale.

    Raises:
      UserError: means that are not unit-norm, log-variances of another shape or not within ±20,
        pairs that are not rows of them, a scale that is not positive.
    """
    means, log_variances = _faces(means, log_variances)
    pairs = checked_pairs(pairs, len(means)).astype(np.int32, copy=False)
    scale = _positive(scale)
    on_device = jax.device_put((means, log_variances))
    sizes = _PAIR_BLOCKS if on_cpu(on_device[0]) else DEVICE_GATHER_BLOCKS
    return by_blocks(partial(likelihood_of_pairs, *on_device, scale), pairs, sizes=sizes)


def score_all_pairs_mls(
    means: np.ndarray,
    log_variances: np.ndarray,
    labels: ArrayLike,
    *,
    scale: float = 1.0,
    terms: FaceTerms | None = None,
) -> SplitScores:
    """The scores of all N(N−1)/2 pairs (i, j), i < j, in the order of `pairs.score_all_pairs`.

    Args:
      means: float32 [N, D], unit rows.
      log_variances: float32 [N, D].
      labels: int [N], the faces' identities.
      scale: as in `score_pairs_mls`.
      terms: a method's numbers of the faces, its rule on scale · MLS in the cosine's place; scale ·
        MLS itself if None.

    Raises:
      UserError: as `score_pairs_mls`, a different number of labels or terms, or more pairs than are
        kept in memory.
    """
    terms = cosine_terms(len(means)) if terms is None else terms
    terms.check(len(means))
    return all_pair_scores_mls(means, log_variances, labels, {"": terms}, scale=scale)[""]


def all_pair_scores_mls(
    means: np.ndarray,
    log_variances: np.ndarray,
    labels: ArrayLike,
    methods: Mapping[str, FaceTerms],
    *,
    scale: float = 1.0,
) -> dict[str, SplitScores]:
    """{method: `score_all_pairs_mls`}; the likelihoods are computed once."""
    means, log_variances = _faces(means, log_variances)
    scale, n = _positive(scale), len(means)
    on_device = jax.device_put((means, log_variances))
    most, columns = (max(1, min(size, n)) for size in _tile(on_device))

    def similarities(first: int, rows: int) -> np.ndarray:
        scores = np.empty((rows, n), np.float32)
        # Columns before the rows hold no i < j.
        for column in range(first, n, columns):
            left = min(column, n - columns)
            found = _likelihoods(rows, columns, on_device, first, left, scale)
            scores[:, left : left + columns] = found
        return scores

    return split_all_pairs(similarities, checked_labels(labels, n), methods, rows=most)


def nearest_by_likelihood(
    means: np.ndarray,
    log_variances: np.ndarray,
    anchor_means: np.ndarray,
    anchor_log_variances: np.ndarray,
    *,
    k: int,
    scale: float,
    labels: np.ndarray | None = None,
    anchor_labels: np.ndarray | None = None,
) -> np.ndarray:
    """scale · MLS of each face with its support set: the k anchors where it is highest. Exact.

    An anchor with the face's label is left out; negative labels are unknown and exclude nothing.

    Args:
      means: float32 [N, D], unit rows.
      log_variances: float32 [N, D].
      anchor_means: float32 [A, D], unit rows.
      anchor_log_variances: float32 [A, D].
      k: 1 ≤ k ≤ A.
      scale: σ̄² of the anchors (`likelihood_scale`), for the τ of the cosine.
      labels: int [N], with `anchor_labels`.
      anchor_labels: int [A], with `labels`.

    Returns:
      float32 [N, k], descending; -inf where fewer than k anchors were allowed.

    Raises:
      UserError: as `score_pairs_mls` of either side, widths that differ, k outside 1 … A, a
        different number of labels, or labels on one side alone.
    """
    means, log_variances = _faces(means, log_variances)
    anchor_means, anchor_log_variances = _faces(anchor_means, anchor_log_variances, "anchors'")
    n, (a, width) = len(means), anchor_means.shape
    scale = _positive(scale)
    if means.shape[1] != width:
        raise UserError(f"the faces are {means.shape[1]} wide, the anchors {width}: expected one")
    if not 1 <= k <= a:
        raise UserError(f"k is {k} and there are {a} anchors: expected 1 … {a}")
    if (labels is None) != (anchor_labels is None):
        raise UserError("labels are of one side alone: give the faces' and the anchors', or none")
    # Unknown on both sides: nothing is excluded.
    labels = np.full(n, -1) if labels is None else np.asarray(labels)
    anchor_labels = np.full(a, -1) if anchor_labels is None else np.asarray(anchor_labels)
    if labels.shape != (n,) or anchor_labels.shape != (a,):
        raise UserError(
            f"{labels.size} and {anchor_labels.size} labels for {n} faces and {a} anchors: "
            "expected one each"
        )
    anchors = jax.device_put((anchor_means, anchor_log_variances, anchor_labels.astype(np.int32)))
    faces = (means, log_variances, labels.astype(np.int32))
    rows, columns = _tile(anchors)
    nearest = partial(nearest_likelihoods, k, max(k, min(columns, a)), anchors)
    return scale * by_blocks(nearest, *faces, sizes=(rows,), title="search")


@jax.jit
def likelihood_of_pairs(
    means: jax.Array, log_variances: jax.Array, scale: jax.Array, pairs: jax.Array
) -> jax.Array:
    """scale · MLS of pairs [P, 2] of the faces [N, D], float32 [P]."""
    first, second = pairs[:, 0], pairs[:, 1]
    # Within ±20 the sum of the variances needs no logaddexp, which takes several times as long.
    variance = jnp.exp(log_variances[first]) + jnp.exp(log_variances[second])
    squared = jnp.square(means[first] - means[second])
    return -scale * jnp.sum(squared / variance + jnp.log(variance), axis=-1)


@partial(jax.jit, static_argnums=(0, 1))
def _likelihoods(
    rows: int,
    columns: int,
    faces: tuple[jax.Array, jax.Array],
    first: jax.Array,
    left: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    own = (lax.dynamic_slice_in_dim(x, first, rows) for x in faces)
    others = (lax.dynamic_slice_in_dim(x, left, columns) for x in faces)
    return scale * mls_matrix(*own, *others)


@partial(jax.jit, static_argnums=(0, 1))
def nearest_likelihoods(
    k: int,
    columns: int,
    anchors: tuple[jax.Array, ...],
    means: jax.Array,
    log_variances: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """The k highest MLS of faces [N, D] among the anchors, by blocks of `columns`, [N, k]."""

    def scores(first: jax.Array) -> jax.Array:
        block = (lax.dynamic_slice_in_dim(x, first, columns) for x in anchors)
        anchor_means, anchor_log_variances, anchor_labels = block
        found = mls_matrix(means, log_variances, anchor_means, anchor_log_variances)
        same = (labels[:, None] == anchor_labels[None, :]) & (anchor_labels >= 0)[None, :]
        return jnp.where(same, -jnp.inf, found)

    shape = (len(means), len(anchors[0]))
    return blockwise_top_k(scores, shape, k=k, block_size=columns).similarities


def _tile(arrays: tuple[jax.Array, ...]) -> tuple[int, int]:
    return _TILE if on_cpu(arrays[0]) else DEVICE_TILE


def _faces(
    means: np.ndarray, log_variances: np.ndarray, whose: str = "faces'"
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32 [N, D], or a UserError."""
    means = require_unit(means, what=f"the {whose} means")
    what = f"the {whose} log-variances"
    log_variances = require_log_variances(log_variances, what=what)
    if log_variances.shape != means.shape:
        raise UserError(
            f"{what} are {list(log_variances.shape)}, the means {list(means.shape)}: "
            "expected one of each entry"
        )
    return means, log_variances.astype(np.float32, copy=False)


def _positive(scale: float) -> np.float32:
    if not 0 < scale < np.inf:
        raise UserError(f"scale is {scale}: expected a finite number above 0")
    return np.float32(scale)
