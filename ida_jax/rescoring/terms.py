"""What a method adds to the cosine of a pair: numbers of each face, and the rule that joins them.

Every method is an elementwise function of the pair's cosine and of a few numbers of its two faces.
So N faces are searched once, and a pair then costs one dot product, whatever the method.

P pairs, N faces, S numbers of a face.

    rule      numbers of a face f           constants   score of (f₁, f₂)
    cosine    none                          none        c = ⟨f₁, f₂⟩
    dao       log F                         τ           τ c + log(F₁ + F₂)           (Eq. 4)
    z_norm    μ, σ of its cohort scores     none        (c − μ₁) / σ₁
    t_norm    μ, σ                          none        (c − μ₂) / σ₂
    s_norm    μ, σ                          none        ½ (c − μ₁)/σ₁ + ½ (c − μ₂)/σ₂
    csn       g                             w₀, b       w₀ c + g₁ + g₂ + b
    quality   u, l = ln ‖x‖                 T, θ_u, θ_l, a, b, σ
                                                        IDA-Q's (`ida_jax.ops.quality`)
    dao_norm  log F, l                      τ, w        τ c + log(F₁ + F₂) − w (l₁ + l₂)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_tau
from ida_jax.ops.cohort import csn_score, s_norm, t_norm, z_norm
from ida_jax.ops.dao import log_dao
from ida_jax.ops.quality import log_dao_less_norms, quality_score
from ida_jax.rescoring import index_forms


class Rule(NamedTuple):
    """How two faces' numbers join the pair's cosine.

    Attributes:
      values: S, the numbers of a face.
      constants: C.
      score: (cosine [...], first [..., S], second [..., S], constants [C]) to scores [...]; pure.
      index: the same as an inner product, or one that is an upper bound, the first face being the
        enrolled one; None where there is none.
    """

    values: int
    constants: int
    score: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    index: index_forms.IndexForm | None = None


def _quality(c: jax.Array, f: jax.Array, g: jax.Array, w: jax.Array) -> jax.Array:
    return quality_score(
        c, f[..., 0], f[..., 1], g[..., 0], g[..., 1],
        rate=w[0], density_weight=w[1], norm_weight=w[2],
        intercept=w[3], slope=w[4], deviation=w[5],
    )  # fmt: skip


def _dao_norm(c: jax.Array, f: jax.Array, g: jax.Array, w: jax.Array) -> jax.Array:
    faces = (f[..., 0], f[..., 1], g[..., 0], g[..., 1])
    return log_dao_less_norms(c, *faces, tau=w[0], norm_weight=w[1])


RULES = {
    "cosine": Rule(0, 0, lambda c, f, g, w: c, index_forms.COSINE),
    "dao": Rule(
        1, 1, lambda c, f, g, w: log_dao(c, f[..., 0], g[..., 0], tau=w[0]), index_forms.DAO
    ),
    "z_norm": Rule(2, 0, lambda c, f, g, w: z_norm(c, f[..., 0], f[..., 1]), index_forms.Z_NORM),
    "t_norm": Rule(2, 0, lambda c, f, g, w: t_norm(c, g[..., 0], g[..., 1]), index_forms.T_NORM),
    "s_norm": Rule(
        2,
        0,
        lambda c, f, g, w: s_norm(c, f[..., 0], f[..., 1], g[..., 0], g[..., 1]),
        index_forms.S_NORM,
    ),
    "csn": Rule(
        1,
        2,
        lambda c, f, g, w: csn_score(c, f[..., 0], g[..., 0], weight=w[0], bias=w[1]),
        index_forms.CSN,
    ),
    "quality": Rule(2, 6, _quality),
    "dao_norm": Rule(2, 2, _dao_norm, index_forms.DAO_NORM),
}


class FaceTerms(NamedTuple):
    """A method's numbers of each face.

    Attributes:
      rule: one of this module's table.
      values: float32 [N, S]; NaN where a face must not match, and then none of its pairs does.
      constants: float32 [C], the rule's constants.
    """

    rule: str
    values: np.ndarray | jax.Array
    constants: np.ndarray | jax.Array = np.empty(0, np.float32)

    def check(self, faces: int) -> None:
        """Refuses numbers of another count or width, as a UserError."""
        width, constants, *_ = RULES[self.rule]
        if self.values.shape != (faces, width) or self.constants.shape != (constants,):
            raise UserError(
                f"the terms of {self.rule} are {list(self.values.shape)} with "
                f"{self.constants.size} constants: expected [{faces}, {width}] with {constants}"
            )


# Under jit the rule is static, and the numbers are traced.
jax.tree_util.register_pytree_node(
    FaceTerms,
    lambda terms: ((terms.values, terms.constants), terms.rule),
    lambda rule, arrays: FaceTerms(rule, *arrays),
)


def cosine_terms(faces: int) -> FaceTerms:
    """The plain cosine, for `faces` faces."""
    return FaceTerms("cosine", np.empty((faces, 0), np.float32))


def dao_terms(log_density: np.ndarray, *, tau: float) -> FaceTerms:
    """log-DAO (Eq. 4).

    Args:
      log_density: float32 [N], log F of each face, searched (IDA-R) or regressed (IDA-L).
      tau: the τ that they were made with.

    Raises:
      UserError: densities that are not [N] or not finite, τ out of its range.
    """
    log_density = np.asarray(log_density, np.float32)
    if log_density.ndim != 1:
        raise UserError(
            f"log F is {list(log_density.shape)}: expected [N], one number for each face"
        )
    bad = np.flatnonzero(~np.isfinite(log_density))
    if bad.size:
        raise UserError(f"log F of face {bad[0]} is {log_density[bad[0]]}: expected finite numbers")
    return FaceTerms("dao", log_density[:, None], np.float32([require_tau(tau)]))
