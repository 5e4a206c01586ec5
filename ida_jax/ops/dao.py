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
import numpy as np

# `fall_back`'s constants (experiments/safe_anchors.py).
_USUAL = 0.3
_CAUTION = 0.5
_ONE_SIDED = 1.645  # standard errors: 95 % on one side
_MOST = 1.5

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


def fall_back(
    log_density: np.ndarray, own_log_density: np.ndarray, *, weight: float, error: float
) -> np.ndarray:
    """log F that falls back to a constant, and the score to the cosine, where log F says nothing.

        log F̃ = m + w · min(log F − m, 0)

        m = the value below which 30 % of the anchors' own log F lie: only crowded faces differ
        w = ½ · clip(ω − 1.645 σ, 0, 1.5)

    Anchors may lie elsewhere: then log F is the distance to them, above what is usual among them,
    and the minimum makes it one constant; pairs of two such faces rank by their cosine. It also
    bounds what bad images gain that crowd where no anchor is: they are preferred to the faces in
    the anchors' own crowds alone, 30 % of the right domain, and no longer to half of it. Or there
    is nothing to be near to (random directions, few anchors): then the anchors' own impostor pairs
    support no weight of log F, and w takes it out. Or their domain overlaps the faces', and log F
    means less there than among the anchors, which nothing in the anchors shows: so w is half of
    what they support, by the lower end of its one-sided 95 % interval. In theory half of the best
    weight has three quarters of the best gain, and loses to the cosine only where the faces
    support less than a quarter of it (`ida_jax.anchors.supported_weight`).

    No function of a face and the anchors alone is safe whatever the probes: where half of them are
    degraded and no anchor is, the little that is left of log F still costs TAR.

    Args:
      log_density: [N], log F of each face.
      own_log_density: [S], log F of anchors among the other anchors, with the same k and τ.
      weight: ω, the weight that the anchors' own impostor pairs support, 1 for DAO's own
        (`ida_jax.anchors.supported_weight.own_weight`).
      error: σ, its standard error; infinite where nothing is known.

    Returns:
      float32 [N].
    """
    usual = np.quantile(own_log_density, _USUAL).astype(np.float32)
    shrunk = np.float32(_CAUTION * min(max(weight - _ONE_SIDED * error, 0.0), _MOST))
    return usual + shrunk * np.minimum(np.asarray(log_density, np.float32) - usual, 0)


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
