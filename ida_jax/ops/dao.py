"""The Discrepancy Alignment Operator: the paper's Eq. 1 and 4, in the logarithm.

P pairs, N faces, K support: any leading shape is a batch. τ is the temperature (paper: 1).

    F(f, Ψ)          = 1 / Σᵢ exp(τ sᵢ)                 sᵢ = ⟨f, f̂ᵢ⟩ for the K members of Ψ
    DAO(f₁, f₂, …)   = exp(τ ⟨f₁, f₂⟩) · (F₁ + F₂)

F is called the density by the paper, but it *falls* as the neighbourhood grows denser, and with it
the score. In the logarithm

    log F            = −lse(τ s)
    log DAO          = τ ⟨f₁, f₂⟩ + logaddexp(log F₁, log F₂)

nothing under- or overflows, and the ranking of pairs is the same. IDA-R and IDA-L differ only in
where log F comes from: searched (`log_density`) or regressed by the SSR module.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

# One program where it is called by itself, and the operations themselves within another.
_compiled = partial(jax.jit, inline=True)


@_compiled
def log_density(
    similarities: jax.Array, *, tau: float | jax.Array = 1.0, where: jax.Array | None = None
) -> jax.Array:
    """log F(f, Ψ) = −log Σᵢ exp(τ sᵢ) over the support set (Eq. 4's F).

    Args:
      similarities: [..., K], the cosines sᵢ of a face to its support set.
      tau: τ > 0, a number or an array that broadcasts to the leading shape.
      where: bool [..., K], the members that exist; all of them if None.

    Returns:
      [...]. +inf where the mask leaves no member: there is no density without neighbours.
    """
    scaled = _scaled(tau, similarities, trailing=1)
    if where is not None:
        # A masked member may hold -inf or NaN; a value replaced first has no gradient to spoil.
        scaled = jnp.where(where, scaled, 0.0)
    return -jax.nn.logsumexp(scaled, axis=-1, where=where)


def density(
    similarities: jax.Array, *, tau: float | jax.Array = 1.0, where: jax.Array | None = None
) -> jax.Array:
    """F(f, Ψ) = 1 / Σᵢ exp(τ sᵢ) (Eq. 4): the exponential of `log_density`, same arguments.

    Where Eq. 4 leaves the numbers' range (large τ; no member at all) it saturates at about the
    largest finite one.
    """
    return saturating_exp(log_density(similarities, tau=tau, where=where))


@_compiled
def log_dao(
    similarity: jax.Array,
    log_density_1: jax.Array,
    log_density_2: jax.Array,
    *,
    tau: float | jax.Array = 1.0,
) -> jax.Array:
    """log DAO = τ ⟨f₁, f₂⟩ + log(F₁ + F₂), the logarithm of Eq. 4.

    Args:
      similarity: [...], the pair's cosine ⟨f₁, f₂⟩.
      log_density_1: [...], log F of the first face.
      log_density_2: [...], log F of the second face.
      tau: the τ that the densities were made with.

    Returns:
      [...], the aligned score. It is symmetric in the two faces, to the last bit.
    """
    return _scaled(tau, similarity, trailing=0) + jnp.logaddexp(log_density_1, log_density_2)


def dao(
    similarity: jax.Array,
    log_density_1: jax.Array,
    log_density_2: jax.Array,
    *,
    tau: float | jax.Array = 1.0,
) -> jax.Array:
    """DAO on the paper's own scale (Eq. 4): the exponential of `log_dao`, same arguments.

    It saturates like `density`; rank pairs by `log_dao`.
    """
    return saturating_exp(log_dao(similarity, log_density_1, log_density_2, tau=tau))


@_compiled
def saturating_exp(x: jax.Array) -> jax.Array:
    """exp(x), at most about the largest finite number: a log score on the paper's own scale."""
    # A little less than log(max), whose rounding may lie above it.
    return jnp.exp(jnp.minimum(x, 0.9999 * jnp.log(jnp.finfo(x.dtype).max)))


def _scaled(tau: float | jax.Array, x: jax.Array, *, trailing: int) -> jax.Array:
    """τ·x, where an array τ has the leading axes of x and none of its last `trailing` ones."""
    if jnp.ndim(tau) == 0:
        return tau * x
    return tau.reshape(tau.shape + (1,) * trailing) * x


def soft_log_density(
    similarities: jax.Array, tau: jax.Array, support: jax.Array, softness: jax.Array
) -> jax.Array:
    """log F with a soft support set: −lse_j(τ s_j + log m_j), m_j = sigmoid((κ − j + ½) / T).

    Args:
      similarities: [..., K], descending: s₁ ≥ … ≥ s_K.
      support: κ, the support set's size, a real number.
      softness: T, over how many ranks the membership falls off.

    Returns:
      [...].
    """
    rank = jnp.arange(1, similarities.shape[-1] + 1, dtype=similarities.dtype)
    members = jax.nn.log_sigmoid((support - rank + 0.5) / softness)
    members = members.reshape((1,) * (similarities.ndim - 1) + members.shape)
    return -jax.nn.logsumexp(tau * similarities + members, axis=-1)


class PairSimilarities(NamedTuple):
    """Pairs with the similarities that their densities are computed from.

    Attributes:
      cosine: float32 [P].
      first: float32 [P, K], descending, the first faces' similarities to their anchors.
      second: float32 [P, K], the second faces'.
    """

    cosine: jax.Array
    first: jax.Array
    second: jax.Array


def smooth_tar(
    theta: jax.Array,
    genuine: PairSimilarities,
    impostor: PairSimilarities,
    *,
    rank: int,
    softness: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    """A smooth TAR at a FAR of IDA-R's score: mean over genuine of sigmoid((z − t) / temperature).

        z = c + w/τ · logaddexp(log F₁, log F₂)

    with `soft_log_density`, and t the mean of the impostors' z at the ranks r/2 … 2r: a single
    impostor's gradient would be noise. Ours, not the paper's.

    Args:
      theta: [3], the logarithms of τ, w and κ.
      genuine: the genuine pairs.
      impostor: the highest impostor pairs, more than 2·rank.
      rank: r.
      softness: T.
      temperature: in cosine.

    Returns:
      A number.
    """
    tau, weight, support = jnp.exp(theta)

    def score(pairs: PairSimilarities) -> jax.Array:
        both = (
            soft_log_density(side, tau, support, softness) for side in (pairs.first, pairs.second)
        )
        return pairs.cosine + weight / tau * jnp.logaddexp(*both)

    highest = jax.lax.top_k(score(impostor), 2 * rank)[0]
    threshold = jnp.mean(highest[rank // 2 :])
    return jnp.mean(jax.nn.sigmoid((score(genuine) - threshold) / temperature))
