"""Fitting IDA-R's constants by gradient on development faces whose identities are known.

The weight w and the size κ follow the gradient of a smooth TAR at a FAR, a pair's own people left
out of its support sets. τ is not fitted: that gained nothing.

N faces, A anchors, D embedding, K support, P pairs. The score is `ida_jax.rescoring.fitted_dao`'s.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import refuse_self_matches
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_unit
from ida_jax.metrics.roc import accepted_impostors
from ida_jax.metrics.tails import genuine_rows, impostor_rows
from ida_jax.ops.dao import soft_log_density
from ida_jax.rescoring.fitted_dao import CONSTANTS, REACH, DaoFit
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs
from ida_jax.rescoring.terms import FaceTerms

_PAPER = {"tau": 1.0, "weight": 1.0, "support": 10.0}
# 4 r impostors are kept of each score that is near the fitted one; the threshold looks at 2 r.
_TAIL, _FEWEST = 4, 10
_ROUNDS = 2


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

    with z = score/τ, in the cosine's unit, and t the mean of the impostors' z at the ranks r/2 … 2r
    for r = ⌊far · n⌋: a single impostor's gradient would be noise. Only the impostors at the high
    end count; they are picked among all pairs by the cosine, by IDA-R and by a first fit. τ keeps
    the paper's value unless asked: fitting it gave nothing on LFW (experiments/fit_dao.py).

    In use nobody of a pair is among the anchors. Where development people are, both identities of a
    pair are left out of its two support sets: the partner of an impostor pair with a high cosine is
    otherwise at the top of the support set, which gives the pair away.

    Args:
      faces: float32 [N, D], unit rows: development faces, never those under test.
      labels: int [N], their identities; a negative one is unknown, and its face left out.
      anchors: what the fit will be used with.
      far: the FAR, in (0, ½).
      fitted: those of `CONSTANTS` that are fitted; the others keep the paper's value.
      most_support: K, the most neighbours that are looked at.
      softness: T of the membership.
      temperature: of the smooth TAR, in cosine.
      ridge: of the pull towards the paper's values.
      images_per_identity: so many faces of an identity are taken at most, the first ones.
      exclude_own: the anchors' labels, where they have any, are in the numbering of `labels`. False
        where the numberings differ: then no person may be in both.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: faces that are no unit rows; labels of another number, of one identity, or without
        a genuine pair; options out of range; too few impostor pairs for the FAR; too few anchors.
    """
    labels = np.asarray(labels)
    faces = require_unit(faces)
    _check(labels, len(faces), far, fitted, temperature, ridge, softness, images_per_identity)
    rows = _first_rows(labels, images_per_identity)
    faces = faces[rows]
    identities, labels = np.unique(labels[rows], return_inverse=True)
    known = exclude_own and anchors.labels is not None
    of_anchors = _renumbered(np.asarray(anchors.labels), identities) if known else None
    largest = int(np.bincount(of_anchors[of_anchors >= 0], minlength=1).max()) if known else 0
    fit = partial(
        DaoFit, softness=softness, width=anchors.width, anchors=len(anchors),
        fingerprint=anchors.fingerprint, far=far, identities=len(identities),
    )  # fmt: skip
    paper = fit(**_PAPER)
    most = min(most_support, len(anchors) - 2 * largest)
    # Also where there are fewer anchors: the bounds of κ could not hold the paper's 10.
    needed = int(np.ceil(paper.support + REACH * softness))
    if most < needed:
        raise UserError(
            f"most_support = {most_support} of {len(anchors)} anchors leaves {most} neighbours a "
            f"face, and softness = {softness:g} needs {needed} at least: raise "
            "most_support, or take more anchors"
        )
    searched = AnchorSet(anchors.embeddings, of_anchors, fingerprint=anchors.fingerprint)
    found = support_sets(
        faces, searched, k=most + largest, labels=labels if known else None, searcher=searcher
    )
    owners = of_anchors[found.indices] if known else np.full(found.indices.shape, -1)
    refuse_self_matches(found.similarities)
    data = _Development(faces, labels, found.similarities, owners, most)

    cosines = score_all_pairs(faces, labels)
    genuine, impostor = cosines.genuine.size, cosines.impostor.size
    rank = accepted_impostors(far, impostor)
    if not genuine or rank < _FEWEST:
        raise UserError(
            f"{genuine:,} genuine and {impostor:,} impostor pairs of {len(identities):,} "
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


class PairSimilarities(NamedTuple):
    """Pairs with what both faces' densities are made of.

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
    """`fit_dao`'s smooth TAR, a number, without its penalty.

    Args:
      theta: [3], the logarithms of τ, w and κ.
      genuine: the genuine pairs.
      impostor: the highest impostor pairs, more than 2·rank.
      rank: r.
      softness: T.
      temperature: in cosine.
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


class _Development(NamedTuple):
    """Faces [N, D], labels [N], their neighbours' similarities and owners [N, K + spare], and K."""

    faces: np.ndarray
    labels: np.ndarray
    similarities: np.ndarray
    owners: np.ndarray
    most: int

    def terms(self, fit: DaoFit) -> FaceTerms:
        return fit.terms(self.similarities[:, : fit.neighbours])

    def pairs(self, rows: tuple[np.ndarray, np.ndarray]) -> PairSimilarities:
        cosine = score_pairs(self.faces, np.stack(rows, axis=1))
        sides = (self._without(*rows), self._without(*rows[::-1]))
        return PairSimilarities(*map(jnp.asarray, (cosine, *sides)))

    def _without(self, own: np.ndarray, partner: np.ndarray) -> np.ndarray:
        """[P, K] similarities of faces, their partners' identities left out."""
        out = self.similarities[own, : self.most]
        partners = self.owners[own] == self.labels[partner][:, None]
        hit = np.flatnonzero(partners.any(axis=1))
        others = np.argsort(partners[hit], axis=1, kind="stable")[:, : self.most]
        out[hit] = np.take_along_axis(self.similarities[own[hit]], others, axis=1)
        return out


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

    def loss_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _loss(
            jnp.asarray(theta, jnp.float32), jnp.asarray(paper, jnp.float32), genuine, impostor,
            *numbers, rank=rank,
        )  # fmt: skip
        return float(value), np.asarray(slope, np.float64) * free

    # All ranks that a κ within these bounds reaches were searched.
    most = genuine.first.shape[1] - REACH * start.softness
    bounds = np.log([[0.1, 100.0], [0.01, 100.0], [1.0, most]])
    theta = np.log([getattr(start, name) for name in CONSTANTS])
    found = minimize(
        loss_and_gradient, theta, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 100},
    )  # fmt: skip
    return dict(zip(CONSTANTS, np.exp(found.x).tolist(), strict=True))


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of so many highest scores, in any order."""
    return np.argpartition(scores, len(scores) - count)[len(scores) - count :]


def _first_rows(labels: np.ndarray, most: int) -> np.ndarray:
    """Rows of known identity, the first so many of each, ascending."""
    rows = np.flatnonzero(labels >= 0)
    order = rows[np.argsort(labels[rows], kind="stable")]
    number_within = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return np.sort(order[number_within < most])


def _renumbered(labels: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """The anchors' labels in the numbering of the ascending identities, −1 for all others."""
    place = np.minimum(np.searchsorted(identities, labels), len(identities) - 1)
    return np.where(identities[place] == labels, place, -1).astype(np.int32)


def _check(
    labels: np.ndarray,
    faces: int,
    far: float,
    fitted: Sequence[str],
    temperature: float,
    ridge: float,
    softness: float,
    images_per_identity: int,
) -> None:
    if labels.shape != (faces,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)} for {faces} faces: "
            "expected one integer a face"
        )
    known = np.unique(labels[labels >= 0]).size
    if known < 2:
        raise UserError(f"the labels name {known} identities: expected at least 2")
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
            "given: expected finite numbers, the first two above 0, the ridge not below"
        )
    if images_per_identity < 2:
        raise UserError(f"images_per_identity is {images_per_identity}: expected at least 2")
