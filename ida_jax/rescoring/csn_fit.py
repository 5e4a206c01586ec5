"""CSN's classifier, and its fit on development faces whose identities are known.

N faces, A anchors, D embedding, P pairs, R coefficients of a face.
"""

import os
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import largest_identity
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.ops.cohort import csn_objective, polynomial_map
from ida_jax.rescoring.development import Development
from ida_jax.rescoring.pairs import score_pairs

_KIND = "csn"
_PAIR_BLOCK = 16384
# The default number of cohort scores of a face.
USUAL_COHORT = 100


@dataclass(frozen=True, eq=False)
class Csn:
    """Discriminative cohort score normalisation (Tistarelli et al. 2014), trained.

    The shape of a face's sorted cohort scores, as the coefficients q of a polynomial fit
    (`ida_jax.ops.cohort.polynomial_map`), goes beside the pair's cosine to a logistic regression
    that is symmetric in the pair:

        w₀ c + g(f₁) + g(f₂) + b,   g(f) = ⟨w, q(f)⟩

    On data like the development set the score is a log-likelihood ratio (natural logarithm). Made
    by `fit_csn`.

    Attributes:
      coefficient_weights: w, float64 [degree + 1].
      weight: w₀.
      bias: b.
      top_n: the number of cohort scores of a face.
      width: D, the embeddings' width.
      anchors: the size of the cohort that it was fitted with: a larger one has higher top scores.
      fingerprint: of the model whose embeddings it takes; "" where unknown.
      prior: the share of genuine pairs that the regression was weighted to.
      identities: the number of people in the fitted pairs.
      genuine: the number of genuine pairs that it was fitted on.
      impostor: the number of impostor pairs.
      anchors_sketch: `AnchorSet.sketch` of the cohort; "" in classifiers of older versions.
    """

    coefficient_weights: np.ndarray
    weight: float
    bias: float
    top_n: int
    width: int
    anchors: int
    fingerprint: str
    prior: float
    identities: int
    genuine: int
    impostor: int
    anchors_sketch: str = ""

    @property
    def degree(self) -> int:
        """The polynomial's degree."""
        return len(self.coefficient_weights) - 1

    def face_term(self, similarities: np.ndarray) -> np.ndarray:
        """g of each face, float32 [N].

        Args:
          similarities: float32 [N, top_n], descending: what `ida_jax.anchors.search.support_sets`
            gives for k = top_n, among the anchors that the classifier was fitted with
            (`check_anchors`).

        Raises:
          UserError: a different number of scores for a face.
        """
        if similarities.ndim != 2 or similarities.shape[1] != self.top_n:
            raise UserError(
                f"the cohort scores are {list(similarities.shape)}: expected [N, {self.top_n}], "
                "the number that the CSN classifier was fitted with"
            )
        # g is linear in the sorted scores: one weight a rank.
        by_rank = self.coefficient_weights @ polynomial_map(self.top_n, self.degree)
        return (similarities.astype(np.float64) @ by_rank).astype(np.float32)

    def check_anchors(self, anchors: AnchorSet) -> None:
        """Refuses, by UserError, other anchors than those that it was fitted with."""
        anchors.check_fit(self, "CSN classifier", "csn")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the classifier as one safetensors file, whole or not at all."""
        metadata = asdict(self)
        tensors = {"coefficient_weights": metadata.pop("coefficient_weights")}
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Csn":
        """Reads a saved classifier.

        Raises:
          UserError: the file is absent, torn, or not a CSN classifier.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            loaded = cls(np.array(tensors["coefficient_weights"]), **metadata)
            require_types(loaded)
            weights = loaded.coefficient_weights
            if weights.ndim != 1 or weights.dtype.kind != "f":
                raise ValueError(f"the coefficients are {weights.dtype} {list(weights.shape)}")
            if not min(loaded.width, loaded.anchors) > 0:
                raise ValueError("the width or the number of anchors is not above 0")
            if not 0 <= loaded.degree < loaded.top_n:
                raise ValueError(f"degree {loaded.degree} of top_n = {loaded.top_n} scores")
        return loaded


class _Pairs(NamedTuple):
    """Rows of faces, int64 [P, 2], and whether each pair is genuine, bool [P]."""

    rows: np.ndarray
    same: np.ndarray


class _Cohorts(NamedTuple):
    """Each face's highest cohort scores [N, m], their identities [N, m], and the fit [top_n, R]."""

    scores: np.ndarray
    identities: np.ndarray
    fit: np.ndarray


def fit_csn(
    faces: np.ndarray,
    labels: np.ndarray,
    anchors: AnchorSet,
    *,
    top_n: int | None = None,
    degree: int = 3,
    prior: float = 1e-3,
    ridge: float = 1e-6,
    images_per_identity: int = 30,
    impostor_pairs: int = 500_000,
    exclude_own: bool = True,
    searcher: str = "auto",
    seed: int = 0,
) -> Csn:
    """Logistic regression on [c, q(f₁) + q(f₂)], q the polynomial coefficients of a face's cohort.

    It minimises `ida_jax.ops.cohort.csn_objective` in float64, over all genuine pairs of at most
    `images_per_identity` faces of an identity and a sample of impostor pairs of the same faces.
    Features are scaled to unit deviation, which is folded back afterwards, and
    log(prior / (1 − prior)) is subtracted from the bias, so that the score is a log-likelihood
    ratio whatever the prior. The defaults of prior and images_per_identity were the best of those
    tried in a cross-validation over the identities of LFW's anchor half (TAR at FAR 1e-4 and 1e-5).

    In use neither person of a pair is among the anchors. Where development people are, a face's
    cohort excludes its own identity and its partner's: otherwise the partner of an impostor pair
    with a high cosine is at the top of the cohort, and the regression learns to spot it there.

    Args:
      faces: float32 [N, D], unit rows: development faces, never those under test.
      labels: int [N], their identities; a negative one is unknown, and its face left out.
      anchors: the cohort that the classifier will be used with.
      top_n: the number of a face's highest cohort scores that are fitted; if None 100, or as many
        as every pair has where the anchors are fewer.
      prior: the share of genuine pairs that the two classes are weighted to.
      ridge: of the penalty.
      images_per_identity: at most this many faces of an identity are drawn, so that a few people
        with many images do not outweigh the rest.
      impostor_pairs: how many are drawn, with replacement; all, where there are no more.
      exclude_own: the two identities of a pair are left out of its cohorts by the anchors' labels,
        where they have any, which are then in the numbering of `labels`. False where the numberings
        differ: then no person may be in both.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: faces that are not unit-norm; a different number of labels, labels of one identity
        or without a genuine pair; top_n, degree, prior, ridge or a count out of range; fewer than
        top_n anchors left; faces that are themselves among the anchors of their cohort.
    """
    labels = np.asarray(labels)
    known = exclude_own and anchors.labels is not None
    spare = largest_identity(anchors.labels) if known else 0
    if top_n is None:
        top_n = max(1, min(USUAL_COHORT, len(anchors) - 2 * spare))
    if labels.shape != np.shape(faces)[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)} for faces {list(np.shape(faces))}: "
            "expected one integer for each face"
        )
    if not 0 <= degree < top_n:
        raise UserError(
            f"degree = {degree} through top_n = {top_n} cohort scores was asked for: "
            "expected 0 ≤ degree < top_n"
        )
    if not 0 < prior < 1 or not 0 < ridge < np.inf:
        raise UserError(
            f"prior = {prior:g} and ridge = {ridge:g} were given: expected a prior between 0 and 1 "
            "and a finite ridge above 0"
        )
    if images_per_identity < 2 or impostor_pairs < 1:
        raise UserError(
            f"images_per_identity = {images_per_identity} and impostor_pairs = {impostor_pairs} "
            "were given: expected at least 2 and at least 1"
        )
    rng = np.random.default_rng(seed)
    rows = _kept_rows(labels, images_per_identity, rng)
    faces, labels = np.asarray(faces)[rows], labels[rows]
    identities = len(np.unique(labels))
    if identities < 2:
        raise UserError(f"the labels name {identities} identities: expected at least 2")
    pairs = _pairs(labels, impostor_pairs, rng)
    genuine = int(np.count_nonzero(pairs.same))
    if not genuine:
        raise UserError("no identity has two faces: a genuine pair is needed to fit CSN")

    if top_n > len(anchors) - 2 * spare:
        raise UserError(
            f"top_n = {top_n} of {len(anchors)} anchors was asked for, but a pair's two "
            f"people may hold {2 * spare} of them: lower top_n or take more anchors"
        )
    fitted_on = Development(rows, labels, identities, anchors, spare)
    cohort = fitted_on.support(faces, top_n, searcher=searcher)
    cohorts = _Cohorts(
        cohort.similarities.astype(np.float64), cohort.owners, polynomial_map(top_n, degree).T
    )
    both = sum(
        _coefficients(cohorts, side, labels[other])
        for side, other in (pairs.rows.T, pairs.rows.T[::-1])
    )
    features = np.column_stack([score_pairs(faces, pairs.rows), both])
    fitted = logistic_regression(features, pairs.same, prior=prior, ridge=ridge)
    return Csn(
        coefficient_weights=fitted.weights[1:],
        weight=float(fitted.weights[0]),
        bias=fitted.bias,
        top_n=top_n,
        width=anchors.width,
        anchors=len(anchors),
        fingerprint=anchors.fingerprint,
        prior=prior,
        identities=identities,
        genuine=genuine,
        impostor=len(pairs.same) - genuine,
        anchors_sketch=anchors.sketch,
    )


class Logistic(NamedTuple):
    """A log-likelihood ratio linear in the features: x·weights + bias.

    Attributes:
      weights: float64 [F].
    """

    weights: np.ndarray
    bias: float


_loss_and_slope = jax.jit(jax.value_and_grad(csn_objective))
_curvature = jax.jit(jax.hessian(csn_objective))


def logistic_regression(
    features: np.ndarray, same: np.ndarray, *, prior: float, ridge: float
) -> Logistic:
    """The minimum of `ida_jax.ops.cohort.csn_objective`, by Newton's method in a trust region.

    In float64, on features scaled to unit deviation, which is folded back afterwards.

    Args:
      features: float64 [P, F].
      same: bool [P], with both values.
      prior: see `fit_csn`.
      ridge: see `fit_csn`.
    """
    from scipy.optimize import minimize

    share = np.where(same, prior / np.sum(same), (1 - prior) / np.sum(~same))
    mean = share @ features
    deviation = np.sqrt(share @ (features - mean) ** 2)
    deviation[deviation <= 1e-9 * np.abs(mean)] = np.inf  # a constant feature has weight 0
    log_odds = float(np.log(prior / (1 - prior)))
    with jax.enable_x64(True):
        x, genuine = jnp.asarray((features - mean) / deviation), jnp.asarray(same)
        theta = minimize(
            partial(_loss_and_slope, prior=prior, ridge=ridge),
            np.append(np.zeros(x.shape[1]), log_odds),
            args=(x, genuine),
            jac=True,
            hess=partial(_curvature, prior=prior, ridge=ridge),
            method="trust-exact",
            options={"gtol": 1e-10, "maxiter": 1000, "max_trust_radius": 1e3},
        ).x
    weights = theta[:-1] / deviation
    return Logistic(weights, float(theta[-1] - weights @ mean - log_odds))


def _kept_rows(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of known identity, at most `most` of each at random; ordered by identity."""
    rows = rng.permutation(np.flatnonzero(labels >= 0))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    ordered = labels[rows]
    number_within = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return rows[number_within < most]


def _pairs(labels: np.ndarray, impostors: int, rng: np.random.Generator) -> _Pairs:
    """All genuine pairs of faces ordered by identity, and `impostors` random impostor pairs.

    All impostor pairs, where there are no more.
    """
    blocks, distance, count = [], 1, len(labels)
    while True:
        first = np.flatnonzero(labels[: count - distance] == labels[distance:])
        if not first.size:
            break
        blocks.append(np.stack([first, first + distance], axis=1))
        distance += 1
    genuine = sum(map(len, blocks))
    missing = impostors
    if count * (count - 1) // 2 - genuine <= impostors:
        every = np.stack(np.triu_indices(count, 1), axis=1)
        blocks.append(every[labels[every[:, 0]] != labels[every[:, 1]]])
        missing = 0
    while missing:
        drawn = rng.integers(count, size=(impostors, 2))
        drawn = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]][:missing]
        blocks.append(drawn)
        missing -= len(drawn)
    rows = np.concatenate(blocks)
    return _Pairs(rows, np.arange(len(rows)) < genuine)


def _coefficients(cohorts: _Cohorts, faces: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """q [P, R] of one side of each pair (rows of the cohorts), without the partner's identity."""
    top_n = len(cohorts.fit)
    out = (cohorts.scores[:, :top_n] @ cohorts.fit)[faces]
    for start in range(0, len(faces), _PAIR_BLOCK):
        row, partner = (x[start : start + _PAIR_BLOCK] for x in (faces, partners))
        same = cohorts.identities[row] == partner[:, None]
        hit = np.flatnonzero(np.any(same[:, :top_n], axis=1))
        others = np.argsort(same[hit], axis=1, kind="stable")[:, :top_n]
        scores = np.take_along_axis(cohorts.scores[row[hit]], others, axis=1)
        out[start + hit] = scores @ cohorts.fit
    return out
