"""IDA-Q: a pair's score from its cosine, its faces' density and their embeddings' norms.

A low norm indicates a poor image. Among impostors the tail of the cosine c is, with u the mean
cosine of a face's k nearest anchors and l = ln ‖x‖ of its raw embedding,

    log P(c > t) = −T t + θ_u (u₁ + u₂) + θ_l (l₁ + l₂) + const

and a genuine pair's cosine is expected at a + b (l₁ + l₂), so that what falls short of it speaks
against a match:

    s = T c − θ_u (u₁ + u₂) − θ_l (l₁ + l₂) − max(0, a + b (l₁ + l₂) − c)² / (2σ²)

DAO is the density's term alone: logaddexp(log F₁, log F₂) is about the mean of log F₁ and log F₂,
and log F = −τ u + const to first order, so that it is θ_u = T/2 and θ_l = 0 without the last term.
Ours, not the paper's.

Any leading shape is a batch.
"""

import jax
import jax.numpy as jnp

from ida_jax.ops.dao import log_dao


def quality_score(
    similarity: jax.Array,
    crowding_1: jax.Array,
    log_norm_1: jax.Array,
    crowding_2: jax.Array,
    log_norm_2: jax.Array,
    *,
    rate: float | jax.Array,
    density_weight: float | jax.Array,
    norm_weight: float | jax.Array,
    intercept: float | jax.Array,
    slope: float | jax.Array,
    deviation: float | jax.Array,
) -> jax.Array:
    """s of this module's formula, symmetric in the two faces to the last bit.

    Args:
      similarity: [...], c.
      crowding_1: [...], u₁, the mean cosine of the first face's nearest anchors.
      log_norm_1: [...], l₁.
      crowding_2: [...], u₂.
      log_norm_2: [...], l₂.
      rate: T, by which the impostor tail falls, nats a unit of cosine.
      density_weight: θ_u.
      norm_weight: θ_l.
      intercept: a.
      slope: b.
      deviation: σ, above 0.
    """
    log_norms = log_norm_1 + log_norm_2
    shortfall = jnp.maximum(intercept + slope * log_norms - similarity, 0.0) / deviation
    tail = density_weight * (crowding_1 + crowding_2) + norm_weight * log_norms
    return rate * similarity - tail - 0.5 * shortfall * shortfall


def log_dao_less_norms(
    similarity: jax.Array,
    log_density_1: jax.Array,
    log_norm_1: jax.Array,
    log_density_2: jax.Array,
    log_norm_2: jax.Array,
    *,
    tau: float | jax.Array,
    norm_weight: float | jax.Array,
) -> jax.Array:
    """log DAO − w (l₁ + l₂), the label-free form, which needs no development set.

    Args:
      similarity: [...], c.
      log_density_1: [...], log F₁.
      log_norm_1: [...], l₁.
      log_density_2: [...], log F₂.
      log_norm_2: [...], l₂.
      tau: τ of the densities.
      norm_weight: w.
    """
    density = log_dao(similarity, log_density_1, log_density_2, tau=tau)
    return density - norm_weight * (log_norm_1 + log_norm_2)
