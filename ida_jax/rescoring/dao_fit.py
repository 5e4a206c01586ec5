"""IDA-R with fitted constants (the DAO fit): the densities' weight and the support set's size.

The paper sets k = 10 and τ = 1 by hand and gives the densities weight 1. DAO is differentiable, so
its constants can be fitted by gradient on development faces whose identities are known (ours, not
the paper's). With a face's similarities s₁ ≥ … ≥ s_K to its anchors and soft members of the support
set

    log F(f)  = −lse_j(τ s_j + log m_j),   m_j = sigmoid((κ − j + ½) / T)
    score     = τ c + w · logaddexp(log F₁, log F₂)

At w = 1, κ = k and T → 0 this is log-DAO (Eq. 4). Divided by w it is log-DAO with τ/w at the cosine
in place of τ, which ranks alike: the rule "dao" of `ida_jax.rescoring.terms`.

w and κ follow the gradient of a smooth TAR at a FAR (`ida_jax.ops.dao.smooth_tar`), with a pair's
own people left out of its support sets. τ is not fitted: that gained nothing.

N faces, A anchors, D embedding, K support, P pairs.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.devices import by_blocks, filled
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.common.validation import require_unit
from ida_jax.metrics.resampling import genuine_rows, impostor_rows
from ida_jax.metrics.roc import accepted_impostors
from ida_jax.ops.dao import PairSimilarities, smooth_tar, soft_log_density
from ida_jax.rescoring.development import Support, development
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs
from ida_jax.rescoring.terms import FaceTerms

CONSTANTS = ("tau", "weight", "support")
_PAPER = {"tau": 1.0, "weight": 1.0, "support": 10.0}
_KIND = "dao_fit"
_BLOCKS = (64, 4096)
# Members past κ + 10 T have m < 5·10⁻⁵.
_REACH = 10.0
# 4 r impostors are kept by each score close to the fitted one; the threshold needs 2 r.
_TAIL, _FEWEST = 4, 10
_ROUNDS = 2


@dataclass(frozen=True)
class DaoFit:
    """Fitted constants of IDA-R (this module's formula), made by `fit_dao`.

    Attributes:
      tau: τ of the densities.
      weight: w; the cosine has τ/w in the rule "dao".
      support: κ, the support set's size, a real number.
      softness: T, over how many ranks the membership falls off; towards 0 it is a hard support set.
      width: D, the embeddings' width.
      anchors: the size of the anchor set that it was fitted with: a larger one is denser.
      fingerprint: of the model whose embeddings it takes; "" where unknown.
      identities: the number of people in the development faces.
      genuine: the number of genuine pairs that it was fitted on.
      impostor: the number of impostor pairs, of which only the highest were considered.
      anchors_sketch: `AnchorSet.sketch` of that set; "" in fits of older versions.
    """

    tau: float
    weight: float
    support: float
    softness: float
    width: int
    anchors: int
    fingerprint: str = ""
    far: float = 0.0
    identities: int = 0
    genuine: int = 0
    impostor: int = 0
    anchors_sketch: str = ""

    @property
    def neighbours(self) -> int:
        """K, the number of nearest anchors that a face needs."""
        # A fit that ends on its bound may exceed it in the last bit.
        reach = np.ceil(self.support + _REACH * self.softness - 1e-6)
        return min(self.anchors, int(reach))

    def log_density(self, similarities: np.ndarray) -> np.ndarray:
        """log F by this module's formula, float32 [N].

        Args:
          similarities: float32 [N, K], descending, K = `neighbours`.

        Raises:
          UserError: a different number of similarities for a face.
        """
        if similarities.ndim != 2 or similarities.shape[1] != self.neighbours:
            raise UserError(
                f"the similarities are {list(similarities.shape)}: expected [N, "
                f"{self.neighbours}], the reach of the fitted support set"
            )
        tau, support, softness = np.float32([self.tau, self.support, self.softness])
        return by_blocks(
            partial(_soft_log_density, tau=tau, support=support, softness=softness),
            similarities,
            sizes=_BLOCKS,
        )

    @property
    def cosine_tau(self) -> float:
        """τ/w, the cosine's factor in the rule "dao"."""
        return self.tau / self.weight

    def terms(self, similarities: np.ndarray) -> FaceTerms:
        """The faces' terms for `score_pairs`, from the similarities that `log_density` takes."""
        log_f = self.log_density(similarities)
        return FaceTerms("dao", log_f[:, None], np.float32([self.cosine_tau]))

    def check_anchors(self, anchors: AnchorSet) -> None:
        """Refuses, by UserError, other anchors than those that it was fitted with."""
        anchors.check_fit(self, "DAO fit", "dao")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fit as one safetensors file, whole or not at all."""
        metadata = asdict(self)
        constants = np.array([metadata.pop(name) for name in (*CONSTANTS, "softness")])
        save_tensors(path, {"constants": constants}, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DaoFit":
        """Reads a saved fit.

        Raises:
          UserError: the file is absent, torn, or not a DAO fit.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            loaded = cls(*np.array(tensors["constants"]).tolist(), **metadata)
            require_types(loaded)
            constants = (loaded.tau, loaded.weight, loaded.support, loaded.softness)
            if not min(*constants, loaded.width, loaded.anchors) > 0:
                raise ValueError("a constant, the width or the number of anchors is not above 0")
        return loaded


_soft_log_density = jax.jit(soft_log_density)


def fit_dao(
    faces: np.ndarray,
    labels: np.ndarray,
    anchors: AnchorSet,
    *,
    far: float = 1e-4,
    fitted: Sequence[str] = ("weight", "support"),
    most_support: int = 128,
    softness: float = 1.0,
    temperature: float = 0.03,
    ridge: float = 1e-4,
    images_per_identity: int = 10,
    exclude_own: bool = True,
    searcher: str = "auto",
) -> DaoFit:
    """The constants that give the highest smooth TAR at a FAR, over all pairs of the faces.

    By L-BFGS in θ = (log τ, log w, log κ), from the paper's values θ₀, it maximises

        mean over genuine of sigmoid((z − t) / temperature) − ridge · ‖θ − θ₀‖²

    (`ida_jax.ops.dao.smooth_tar`) with z = score/τ, in the cosine's unit, and t the mean of the
    impostors' z at the ranks r/2 … 2r for r = ⌊far · n⌋. Only the highest impostors count; they are
    selected from all pairs by the cosine, by IDA-R and by a first fit. τ keeps the paper's value
    unless named in `fitted`: fitting it gained nothing on LFW (experiments/fit_dao.py).

    Both identities of a pair are left out of its two support sets
    (`ida_jax.rescoring.development`).

    Args:
      faces: float32 [N, D], unit rows: development faces, never those under test.
      labels: int [N], their identities; a negative one is unknown, and its face left out.
      far: the FAR, in (0, ½).
      fitted: those of `CONSTANTS` that are fitted; the others keep the paper's value.
      most_support: K, the most neighbours that are considered.
      softness: T of the membership.
      temperature: of the smooth TAR, in cosine.
      ridge: of the pull towards the paper's values.
      images_per_identity: at most this many faces of an identity are taken, the first ones.
      exclude_own: the anchors' labels, where they have any, are in the numbering of `labels`. False
        where the numberings differ: then no person may be in both.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: faces that are not unit-norm; a different number of labels, labels of one identity
        or without a genuine pair; options out of range; too few impostor pairs for the FAR; too few
        anchors.
    """
    faces = require_unit(faces)
    given = development(
        faces, labels, anchors, images_per_identity=images_per_identity, exclude_own=exclude_own
    )
    if not 0 < far < 0.5:
        raise UserError(f"far is {far:g}: expected a rate between 0 and 0.5, say 0.0001")
    unknown = [name for name in fitted if name not in CONSTANTS]
    if unknown or not fitted:
        raise UserError(
            f"the constants to fit are {', '.join(fitted) or 'none'}: expected some of "
            f"{', '.join(CONSTANTS)}"
        )
    if not (0 < temperature < np.inf and 0 < softness < np.inf and 0 <= ridge < np.inf):
        raise UserError(
            f"temperature = {temperature:g}, softness = {softness:g} and ridge = {ridge:g} were "
            "given: expected finite numbers, the first two above 0, the ridge 0 or more"
        )
    faces, labels = faces[given.rows], given.labels
    fit = partial(
        DaoFit, softness=softness, width=anchors.width, anchors=len(anchors),
        fingerprint=anchors.fingerprint, far=far, identities=given.identities,
        anchors_sketch=anchors.sketch,
    )  # fmt: skip
    paper = fit(**_PAPER)
    most = min(most_support, given.most_neighbours)
    # Also where there are fewer anchors: the bounds of κ could not hold the paper's 10.
    needed = int(np.ceil(paper.support + _REACH * softness))
    if most < needed:
        raise UserError(
            f"most_support = {most_support} of {len(anchors)} anchors leaves {most} neighbours for "
            f"a face, and softness = {softness:g} needs at least {needed}: raise "
            "most_support, or take more anchors"
        )
    data = _Development(faces, labels, given.support(faces, most, searcher=searcher))

    cosines = score_all_pairs(faces, labels)
    genuine, impostor = cosines.genuine.size, cosines.impostor.size
    rank = accepted_impostors(far, impostor)
    if not genuine or rank < _FEWEST:
        raise UserError(
            f"{genuine:,} genuine and {impostor:,} impostor pairs of {given.identities:,} "
            f"identities, {rank} impostors at FAR {far:g}: expected genuine pairs and at least "
            f"{_FEWEST}; raise the FAR or give more faces"
        )
    depth = min(impostor, _TAIL * rank)
    positives = data.pairs(genuine_rows(labels, np.arange(genuine)))
    best, kept = paper, _highest(cosines.impostor, depth)
    del cosines
    for _ in range(_ROUNDS):
        scores = score_all_pairs(faces, labels, data.terms(best))
        kept = np.union1d(kept, _highest(scores.impostor, depth))
        negatives = data.pairs(impostor_rows(labels, kept))
        constants = _maximised(
            positives, negatives, rank, best, fitted, temperature=temperature, ridge=ridge
        )
        best = fit(**constants, genuine=genuine, impostor=impostor)
    return best


class _Development(NamedTuple):
    """Faces [N, D], labels [N], and their nearest anchors."""

    faces: np.ndarray
    labels: np.ndarray
    support: Support

    def terms(self, fit: DaoFit) -> FaceTerms:
        return fit.terms(self.support.similarities[:, : fit.neighbours])

    def pairs(self, rows: tuple[np.ndarray, np.ndarray]) -> PairSimilarities:
        cosine = score_pairs(self.faces, np.stack(rows, axis=1))
        sides = (self.support.without(*rows), self.support.without(*rows[::-1]))
        return PairSimilarities(*map(jnp.asarray, (cosine, *sides)))


def _filled(impostor: PairSimilarities) -> PairSimilarities:
    """The pairs and, for few shapes to compile, others that are never among the highest."""
    count, more = len(impostor.cosine), PairSimilarities(*map(filled, impostor))
    return more._replace(cosine=jnp.asarray(more.cosine).at[count:].set(-jnp.inf))


@partial(jax.jit, static_argnames=("rank",))
@partial(jax.value_and_grad, argnums=0)
def _loss(
    theta: jax.Array,
    start: jax.Array,
    genuine: PairSimilarities,
    impostor: PairSimilarities,
    softness: jax.Array,
    temperature: jax.Array,
    ridge: jax.Array,
    *,
    rank: int,
) -> jax.Array:
    tar = smooth_tar(
        theta, genuine, impostor, rank=rank, softness=softness, temperature=temperature
    )
    return ridge * jnp.sum((theta - start) ** 2) - tar


def _maximised(
    genuine: PairSimilarities,
    impostor: PairSimilarities,
    rank: int,
    start: DaoFit,
    fitted: Sequence[str],
    *,
    temperature: float,
    ridge: float,
) -> dict[str, float]:
    """The constants of `fit_dao`'s maximum, from `start`'s."""
    from scipy.optimize import minimize

    paper = np.log(np.array(list(_PAPER.values())))
    free = np.array([name in fitted for name in CONSTANTS])
    numbers = np.float32([start.softness, temperature, ridge])
    impostor = _filled(impostor)

    def loss_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _loss(
            jnp.asarray(theta, jnp.float32), jnp.asarray(paper, jnp.float32), genuine, impostor,
            *numbers, rank=rank,
        )  # fmt: skip
        return float(value), np.asarray(slope, np.float64) * free

    # All ranks that a κ within these bounds reaches were searched.
    most = genuine.first.shape[1] - _REACH * start.softness
    bounds = np.log([[0.1, 100.0], [0.01, 100.0], [1.0, most]])
    theta = np.log([getattr(start, name) for name in CONSTANTS])
    maximum = minimize(
        loss_and_gradient, theta, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 100},
    )  # fmt: skip
    return dict(zip(CONSTANTS, np.exp(maximum.x).tolist(), strict=True))


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest scores, in any order."""
    return np.argpartition(scores, len(scores) - count)[len(scores) - count :]
