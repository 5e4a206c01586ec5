"""Fitting CSN's classifier on development faces whose identities are known.

N faces, A anchors, D embedding, P pairs, R coefficients a face.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import refuse_self_matches
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.ops.cohort import polynomial_map
from ida_jax.rescoring.cohort import Csn
from ida_jax.rescoring.pairs import score_pairs

_PAIR_BLOCK = 16384


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
    top_n: int = 100,
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

    Over all genuine pairs of at most so many faces an identity, and a sample of impostor pairs of
    the same faces, it minimises in float64

        prior · mean over genuine of log(1 + e^(−z))
        + (1 − prior) · mean over impostors of log(1 + e^z) + ½ · ridge · ‖w‖²

    with z = w·x + b on features x scaled to unit deviation (folded back afterwards); b is not
    penalised, and log(prior / (1 − prior)) is taken off it at the end, so that the score is a
    log-likelihood ratio for every prior. The prior says where the regression looks: 0.5 at the bulk
    of both classes, a small one at the impostors' high end, where low FARs are decided. The
    defaults of prior and images_per_identity were the best of those tried in a cross-validation
    over the identities of LFW's anchor half (TAR at FAR 1e-4 and 1e-5).

    In use nobody of a pair is among the anchors. Where development people are, a face's cohort is
    taken without its own identity and without its partner's: the partner of an impostor pair with a
    high cosine is otherwise at the top of the cohort, and the regression learns to spot it there.

    Args:
      faces: float32 [N, D], unit rows: development faces, never those under test.
      labels: int [N], their identities; a negative one is unknown, and its face left out.
      anchors: the cohort that the classifier will be used with.
      top_n: the number of a face's highest cohort scores that are fitted.
      degree: of the polynomial.
      prior: the share of genuine pairs that the two classes are weighted to.
      ridge: of the penalty.
      images_per_identity: so many faces of an identity are drawn at most, lest a few people with
        many images outweigh the rest.
      impostor_pairs: how many are drawn, with replacement.
      exclude_own: the two identities of a pair are left out of its cohorts by the anchors' labels,
        where they have any, which are then in the numbering of `labels`. False where the numberings
        differ: then no person may be in both.
      searcher: see `ida_jax.anchors.search.support_sets`.
      seed: of the draws.

    Raises:
      UserError: faces that are no unit rows; labels of another number, of one identity, or without
        a genuine pair; top_n, degree, prior, ridge or the counts out of range, fewer than top_n
        anchors left; faces that are themselves among the anchors of their cohort.
    """
    labels = np.asarray(labels)
    _check(faces, labels, top_n, degree, prior, ridge, images_per_identity, impostor_pairs)
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

    known = exclude_own and anchors.labels is not None
    spare = _largest_identity(anchors) if known else 0
    if top_n > len(anchors) - 2 * spare:
        raise UserError(
            f"top_n = {top_n} of {len(anchors)} anchors was asked for, but a pair's two "
            f"people may hold {2 * spare} of them: lower top_n or take more anchors"
        )
    found = support_sets(
        faces, anchors, k=top_n + spare, labels=labels if known else None, searcher=searcher
    )
    refuse_self_matches(found.similarities)
    cohorts = _Cohorts(
        found.similarities.astype(np.float64),
        np.asarray(anchors.labels)[found.indices] if known else np.full_like(found.indices, -1),
        polynomial_map(top_n, degree).T,
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
    )


class Logistic(NamedTuple):
    """A log-likelihood ratio linear in the features: x·weights + bias.

    Attributes:
      weights: float64 [F].
      bias: a number.
    """

    weights: np.ndarray
    bias: float


def logistic_regression(
    features: np.ndarray, same: np.ndarray, *, prior: float, ridge: float
) -> Logistic:
    """The minimum of `fit_csn`'s objective, by Newton's method in a trust region.

    Args:
      features: float64 [P, F].
      same: bool [P], both values in it.
      prior: see `fit_csn`.
      ridge: see `fit_csn`.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    share = np.where(same, prior / np.sum(same), (1 - prior) / np.sum(~same))
    mean = share @ features
    deviation = np.sqrt(share @ (features - mean) ** 2)
    deviation[deviation <= 1e-9 * np.abs(mean)] = np.inf  # a constant feature has weight 0
    x = np.column_stack([(features - mean) / deviation, np.ones(len(features))])
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] = 0.0
    sign = np.where(same, -1.0, 1.0)

    def loss_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ theta
        loss = share @ np.logaddexp(0, sign * z) + 0.5 * penalty @ theta**2
        return loss, x.T @ (share * (expit(z) - same)) + penalty * theta

    def hessian(theta: np.ndarray) -> np.ndarray:
        p = expit(x @ theta)
        return x.T @ (x * (share * p * (1 - p))[:, None]) + np.diag(penalty)

    start = np.zeros(x.shape[1])
    start[-1] = logit(prior)
    theta = minimize(
        loss_and_gradient,
        start,
        jac=True,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-10, "maxiter": 1000, "max_trust_radius": 1e3},
    ).x
    weights = theta[:-1] / deviation
    return Logistic(weights, float(theta[-1] - weights @ mean - logit(prior)))


def _kept_rows(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of known identity, at most so many of each, drawn; ordered by identity."""
    rows = rng.permutation(np.flatnonzero(labels >= 0))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    ordered = labels[rows]
    number_within = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return rows[number_within < most]


def _pairs(labels: np.ndarray, impostors: int, rng: np.random.Generator) -> _Pairs:
    """All genuine pairs of faces ordered by identity, and so many impostor pairs."""
    found, distance, count = [], 1, len(labels)
    while True:
        first = np.flatnonzero(labels[: count - distance] == labels[distance:])
        if not first.size:
            break
        found.append(np.stack([first, first + distance], axis=1))
        distance += 1
    genuine = sum(map(len, found))
    missing = impostors
    while missing:
        drawn = rng.integers(count, size=(impostors, 2))
        drawn = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]][:missing]
        found.append(drawn)
        missing -= len(drawn)
    rows = np.concatenate(found)
    return _Pairs(rows, np.arange(len(rows)) < genuine)


def _largest_identity(anchors: AnchorSet) -> int:
    """How many anchors one identity has at most."""
    labels = np.asarray(anchors.labels)
    return int(np.max(np.unique(labels[labels >= 0], return_counts=True)[1], initial=0))


def _coefficients(cohorts: _Cohorts, faces: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """q of one side of each pair, [P, R], its cohort without the partner's identity.

    Args:
      cohorts: of all faces, without their own identities.
      faces: int [P], rows of the cohorts.
      partners: int [P], the identities of the pairs' other faces.
    """
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


def _check(
    faces: np.ndarray,
    labels: np.ndarray,
    top_n: int,
    degree: int,
    prior: float,
    ridge: float,
    images_per_identity: int,
    impostor_pairs: int,
) -> None:
    if labels.shape != np.shape(faces)[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)} for faces {list(np.shape(faces))}: "
            "expected one integer a face"
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
