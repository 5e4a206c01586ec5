"""Cohort score normalisation: a pair's cosine against what its faces score with a cohort.

Every method is an elementwise function of the pair's cosine and of a few numbers of each face, so
that N faces are compared with the cohort once and P pairs then cost one dot product each.

n cohort scores of a face, R = degree + 1 coefficients; any leading shape is a batch.

    Z-norm     (c − μ₁) / σ₁                 cohort scores of the first face, the enrolled one
    T-norm     (c − μ₂) / σ₂                 of the second face, the probe
    S-norm     ½ ((c − μ₁)/σ₁ + (c − μ₂)/σ₂)
    AS-norm    S-norm with μ, σ of each face's own n highest cohort scores
    CSN        w₀ c + g₁ + g₂ + b            g = ⟨w, polynomial coefficients of the sorted scores⟩

Auckenthaler et al. 2000 (Z-, T-norm), Kenny 2010 (S-norm), Matějka et al. 2017 (AS-norm1: each side
selects its own cohort), Tistarelli et al. 2014 (CSN).
"""

import jax
import jax.numpy as jnp
import numpy as np


def z_norm(similarity: jax.Array, mean_1: jax.Array, std_1: jax.Array) -> jax.Array:
    """(c − μ₁) / σ₁, by the cohort scores of the first (enrolled) face.

    Args:
      similarity: [...], the pair's cosine.
      mean_1: [...], the mean of the first face's cohort scores.
      std_1: [...], their deviation, above 0.
    """
    return (similarity - mean_1) / std_1


def t_norm(similarity: jax.Array, mean_2: jax.Array, std_2: jax.Array) -> jax.Array:
    """(c − μ₂) / σ₂, by the cohort scores of the second (probe) face; arguments as `z_norm`."""
    return (similarity - mean_2) / std_2


def s_norm(
    similarity: jax.Array, mean_1: jax.Array, std_1: jax.Array, mean_2: jax.Array, std_2: jax.Array
) -> jax.Array:
    """½ (Z-norm + T-norm), symmetric in the two faces to the last bit.

    With statistics of each face's own n highest cohort scores it is AS-norm.
    """
    return 0.5 * (z_norm(similarity, mean_1, std_1) + t_norm(similarity, mean_2, std_2))


def csn_score(
    similarity: jax.Array,
    term_1: jax.Array,
    term_2: jax.Array,
    *,
    weight: float | jax.Array,
    bias: float | jax.Array,
) -> jax.Array:
    """w₀ c + g₁ + g₂ + b, symmetric in the two faces to the last bit.

    Args:
      similarity: [...], the pair's cosine.
      term_1: [...], g of the first face (`ida_jax.rescoring.csn_fit.Csn.face_term`).
      term_2: [...], g of the second.
      weight: w₀.
      bias: b.
    """
    return weight * similarity + (term_1 + term_2) + bias


def csn_objective(
    theta: jax.Array,
    features: jax.Array,
    same: jax.Array,
    *,
    prior: float | jax.Array,
    ridge: float | jax.Array,
) -> jax.Array:
    """What CSN's training minimises: a prior-weighted logistic loss and a penalty.

        prior · mean over genuine of log(1 + e^(−z))
        + (1 − prior) · mean over impostors of log(1 + e^z) + ½ · ridge · ‖w‖²

    with z = w·x + b. The prior says where the regression looks: 0.5 at the bulk of both classes, a
    small one at the impostors' high end, where low FARs are decided. b is not penalised.

    Args:
      theta: [R + 1], the weights w and, last, the bias b.
      features: [P, R], x of each pair.
      same: bool [P], whether a pair is genuine; both values occur.
      prior: the share of genuine pairs that the two classes are weighted to.
      ridge: of the penalty.

    Returns:
      A number, strictly convex in theta where ridge > 0.
    """
    weights, bias = theta[:-1], theta[-1]
    z = features @ weights + bias
    genuine = same.astype(z.dtype)
    impostor = 1 - genuine
    loss = prior * jnp.average(jax.nn.softplus(-z), weights=genuine)
    loss += (1 - prior) * jnp.average(jax.nn.softplus(z), weights=impostor)
    return loss + 0.5 * ridge * weights @ weights


def polynomial_map(n: int, degree: int) -> np.ndarray:
    """The fixed linear map from n sorted scores to the fit's R coefficients, float64 [R, n].

    It is the pseudo-inverse of V with V[r, j] = P_j(x_r): the Legendre polynomials P_0 … P_degree
    at the ranks r = 0 … n−1 scaled to x_r = 2r/(n−1) − 1. The curve is the one that powers of the
    rank would give, whose coefficients are ill-conditioned; here the first coefficient is about the
    scores' mean, and minus the second about half their fall from the first to the last.

    Raises:
      ValueError: a degree outside 0 … n − 1.
    """
    if not 0 <= degree < n:
        raise ValueError(f"a polynomial of degree {degree} through n = {n} scores")
    ranks = np.linspace(-1.0, 1.0, n)
    return np.linalg.pinv(np.polynomial.legendre.legvander(ranks, degree))
