"""Probabilistic Face Embeddings: a face as a Gaussian, pairs by their mutual likelihood score.

Source: Shi and Jain, "Probabilistic Face Embeddings" (ICCV 2019), and their code. A face is
N(μ, diag σ²): μ is its unit embedding, σ² comes from the uncertainty module
(`ida_jax.models.uncertainty_network`). A pair's score is the log-likelihood that both
faces share one embedding,

    MLS = −Σ_d [(μ₁ − μ₂)² / (σ₁² + σ₂²) + log(σ₁² + σ₂²)].

This is their code's score. The article's is ½ MLS − (D/2) log 2π, which ranks pairs alike. Where
all variances are equal, the MLS is an increasing function of the cosine alone.

Variances are given by their logarithms v = log σ², as the module gives them, which are finite for
any σ > 0.

Matrices of the MLS are summed some dimensions at a time, four variances to one logarithm, in blocks
that stay in cache.

N and M faces, B batch, D embedding.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Of the embedding, at once: fewer write the scores too often, more keep too much in registers, or
# are more than XLA makes one GPU kernel of.
_DIMENSIONS, _GPU_DIMENSIONS = 32, 16


def mutual_likelihood(
    mean_1: jax.Array, mean_2: jax.Array, log_variance_1: jax.Array, log_variance_2: jax.Array
) -> jax.Array:
    """MLS = −Σ_d [(μ₁ − μ₂)² / (σ₁² + σ₂²) + log(σ₁² + σ₂²)], pair by pair.

    Args:
      mean_1: [..., D], unit vectors.
      mean_2: [..., D].
      log_variance_1: [..., D], log σ₁², −80 or more in float32, so that 1/σ² is a number.
      log_variance_2: [..., D].

    Returns:
      [...]. Symmetric in the two faces, to the last bit.
    """
    log_sum = jnp.logaddexp(log_variance_1, log_variance_2)
    return -jnp.sum(jnp.square(mean_1 - mean_2) * jnp.exp(-log_sum) + log_sum, axis=-1)


def mls_matrix(
    means_1: jax.Array, log_variances_1: jax.Array, means_2: jax.Array, log_variances_2: jax.Array
) -> jax.Array:
    """The MLS of all pairs of two sets of faces, [N, M], with no array of size N·M·D.

    Some dimensions of all pairs at a time, four of them with one logarithm, of a product: the
    result of `mutual_likelihood` but for rounding, in much less time. On a CPU it is fastest where
    [N, M] stays in cache, as [64, 512] does.

    Args:
      means_1: [N, D], unit rows.
      log_variances_1: [N, D], within ±20, so that no product leaves float32; PFE's are above −14.
      means_2: [M, D].
      log_variances_2: [M, D].
    """

    return lax.platform_dependent(
        means_1,
        log_variances_1,
        means_2,
        log_variances_2,
        cuda=partial(summed_mls, dimensions=_GPU_DIMENSIONS),
        default=partial(summed_mls, dimensions=_DIMENSIONS),
    )


def summed_mls(
    means_1: jax.Array,
    log_variances_1: jax.Array,
    means_2: jax.Array,
    log_variances_2: jax.Array,
    *,
    dimensions: int,
) -> jax.Array:
    """`mls_matrix` by so many dimensions at a time, a multiple of four; the same sums for any."""

    def some(x: jax.Array, beyond: float) -> jax.Array:
        """[N, D] → [⌈D/d⌉, d, N]."""
        rest = -x.shape[1] % dimensions
        x = jnp.pad(x, ((0, 0), (0, rest)), constant_values=beyond)
        return x.T.reshape(x.shape[1] // dimensions, dimensions, len(x))

    def add(scores: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        mean_1, variance_1, mean_2, variance_2 = part
        for first in range(0, dimensions, 4):
            product = 1.0
            for d in range(first, first + 4):
                variance = variance_1[d][:, None] + variance_2[d][None]
                scores -= jnp.square(mean_1[d][:, None] - mean_2[d][None]) / variance
                product *= variance
            scores -= jnp.log(product)
        return scores, None

    # Means of 0 and variances of ½, whose sum is 1, add nothing.
    arrays = (
        some(means_1, 0.0),
        some(jnp.exp(log_variances_1), 0.5),
        some(means_2, 0.0),
        some(jnp.exp(log_variances_2), 0.5),
    )
    nothing = jnp.zeros((len(means_1), len(means_2)), means_1.dtype)
    return lax.scan(add, nothing, arrays)[0]


def positive_pairs_loss(
    means: jax.Array,
    log_variances: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    *,
    run: int | None = None,
) -> jax.Array:
    """Minus the mean MLS over the batch's pairs of two images of one identity.

    Two entries with one row are one image, which fills up an identity that has too few: no pair.

    Args:
      means: [B, D], unit rows.
      log_variances: [B, D].
      labels: int [B], identities.
      rows: int [B], which image each is.
      run: neighbouring entries that are compared; B is a multiple of it. Where each identity's
        images lie in one run, the result is the same for B / run times less work. None compares
        all.

    Returns:
      A scalar; 0 where there is no such pair.
    """
    batch, width = means.shape
    run = batch if run is None else run

    # Only its inputs are kept for the backward pass: no [B, run, D] array in either.
    @jax.checkpoint
    def of_entry(entry: tuple[jax.Array, ...], others: tuple[jax.Array, ...]) -> jax.Array:
        mean, log_variance, label, row = entry
        means, log_variances, labels, rows = others
        score = mutual_likelihood(mean[None], means, log_variance[None], log_variances)
        wanted = (labels == label) & (rows != row)
        return jnp.stack([jnp.sum(score, where=wanted), jnp.sum(wanted.astype(score.dtype))])

    def of_run(entries: tuple[jax.Array, ...]) -> jax.Array:
        if run > 32:
            return jnp.sum(lax.map(lambda entry: of_entry(entry, entries), entries), axis=0)
        return jnp.sum(jax.vmap(of_entry, (0, None))(entries, entries), axis=0)

    runs = (
        means.reshape(-1, run, width),
        log_variances.reshape(-1, run, width),
        labels.reshape(-1, run),
        rows.reshape(-1, run),
    )
    total, pairs = jnp.sum(jax.vmap(of_run)(runs), axis=0)
    return -total / jnp.maximum(pairs, 1.0)
