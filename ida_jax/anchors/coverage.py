"""Whether anchors are of the faces' domain, and what to do where they are not.

Ours, not the paper's: it takes anchors of the right domain for granted. Among anchors of another
one log F measures how far a face lies from that domain, and IDA can rank worse than the cosine
does. The anchors' neighbourhoods among themselves say how near a covered face's support set is.

N faces, A anchors, D embedding, K support, S sampled anchors.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.errors import UserError
from ida_jax.ops.dao import log_density as log_density_of
from ida_jax.ops.hypersphere import Neighbours

_UNCOVERED, _COVERED = 0.01, 0.10
# Of faces from the anchors' domain 1 % lie below the 1st percentile. On LFW: 0.6 %, 1.5 % with 300
# anchors, 3 to 4 % among grey anchors or ones with red and blue exchanged; IDA gained in each of
# these. From 11 % on (half of the domain, by a principal direction) it cost TAR; another model's
# embeddings have 81 %, rendered, upside-down or half-covered faces 100 %. Of 200 draws of 100
# anchors from the right domain none was above 10 %; with 20 anchors one in ten is.
_WRONG_DOMAIN = 0.10
_FEWEST_UNCOVERED = 3  # one or two faces tell nothing


class Neighbourhood(NamedTuple):
    """Support sets of sampled anchors among the other anchors: what is usual in their domain.

    Attributes:
      similarity: float32 [S], the mean cosine of each one's k neighbours.
      log_density: float32 [S], log F of each.
    """

    similarity: np.ndarray
    log_density: np.ndarray


class Coverage(NamedTuple):
    """How well anchors cover probes.

    Attributes:
      faces: the number of probes looked at.
      similarity: the mean cosine of a probe to its k nearest anchors, averaged over the probes.
      own_similarity: the same of an anchor among the others.
      share_uncovered: the share of the probes that are less similar to their nearest anchors than
        99 % of the anchors are to theirs; about 0.01 in the right domain.
      wrong_domain: whether that share is above 0.10, and more than two probes.
    """

    faces: int
    similarity: float
    own_similarity: float
    share_uncovered: float
    wrong_domain: bool


def own_neighbours(
    anchors: AnchorSet, *, k: int, sample: int = 1000, seed: int = 0, searcher: str = "auto"
) -> Neighbours:
    """Support sets of anchors among the anchors of other identities.

    An anchor without a known identity is taken for a person of its own.

    Args:
      anchors: the set.
      k: the support set's size.
      sample: at most so many anchors are looked at, drawn from `seed`.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Returns:
      `Neighbours` [S, K], S = min(sample, A).

    Raises:
      UserError: fewer than k anchors of other identities.
    """
    a = len(anchors)
    if not 1 <= k < a:
        raise UserError(
            f"k = {k} neighbours of an anchor among the others were asked for, in a set of {a}: "
            "lower k or take more anchors"
        )
    if anchors.labels is None:
        labels = np.arange(a, dtype=np.int32)
    else:
        labels = np.array(anchors.labels, np.int32)
        unknown = np.flatnonzero(labels < 0)
        labels[unknown] = labels.max(initial=-1) + 1 + np.arange(unknown.size, dtype=np.int32)
    rows = np.sort(np.random.default_rng(seed).choice(a, min(sample, a), replace=False))
    return support_sets(
        np.asarray(anchors.embeddings[rows]),
        replace(anchors, labels=labels),
        k=k,
        labels=labels[rows],
        searcher=searcher,
    )


def own_neighbourhood(
    anchors: AnchorSet,
    *,
    k: int,
    tau: float,
    sample: int = 1000,
    seed: int = 0,
    searcher: str = "auto",
) -> Neighbourhood:
    """The in-domain reference: how near anchors lie to the anchors of other identities.

    Args: as in `own_neighbours`.
      tau: τ of log F.

    Raises:
      UserError: fewer than k anchors of other identities.
    """
    found = own_neighbours(anchors, k=k, sample=sample, seed=seed, searcher=searcher)
    return Neighbourhood(
        np.mean(found.similarities, axis=1), np.asarray(log_density_of(found.similarities, tau=tau))
    )


def coverage_weight(similarity: np.ndarray, reference: Neighbourhood) -> np.ndarray:
    """How far the anchors cover each face, float32 [N] in 0 … 1.

    0 at and below the reference's 1st percentile, 1 at and above its 10th, linear between.

    Args:
      similarity: [N], the mean cosine of each face to its k nearest anchors.
      reference: `own_neighbourhood` with the same k.
    """
    similarity = np.asarray(similarity, np.float32)
    low, high = np.quantile(reference.similarity, [_UNCOVERED, _COVERED]).astype(np.float32)
    if low == high:
        return (similarity >= high).astype(np.float32)
    return np.clip((similarity - low) / (high - low), 0, 1)


def fall_back(
    log_density: np.ndarray, similarity: np.ndarray, reference: Neighbourhood
) -> np.ndarray:
    """log F that falls back to a constant, and the score to the cosine, as coverage drops.

        log F̃ = m + w · (log F − m)        w = coverage_weight, m = the reference's 90th percentile

    A face with w = 0 has log F̃ = m, whoever it is: pairs of two such faces rank by their cosine.
    m is log F of a barely covered anchor, so that log F̃ passes from one side to the other without a
    jump. (With the median as m a barely covered face would have a higher log F̃ than one that is
    not covered at all; among low-resolution anchors that ranked worse than log F itself.)

    TAR at FAR 1e-5 on LFW, cosine .93465: in the right domain .94088 becomes .94031; rendered
    anchors, .88769, and upside-down ones, .83380, become the cosine's .93465; another model's,
    .93013, .93451; a tenth of the domain, by a principal direction, .90778, .93451.

    Args:
      log_density: [N], log F of each face.
      similarity: [N], the mean cosine of each face to its k nearest anchors.
      reference: `own_neighbourhood` with the same k and τ.

    Returns:
      float32 [N].
    """
    constant = np.quantile(reference.log_density, 1 - _COVERED).astype(np.float32)
    log_density = np.asarray(log_density, np.float32)
    return constant + coverage_weight(similarity, reference) * (log_density - constant)


def coverage(
    probes: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int | None = None,
    labels: np.ndarray | None = None,
    sample: int = 1000,
    seed: int = 0,
    searcher: str = "auto",
) -> Coverage:
    """Whether the anchors are of the probes' domain: the probes' support sets beside their own.

    It finds anchors that lie elsewhere, are another model's, or fill a corner of the domain only.
    It cannot tell random directions from faces: every probe is as near to them as they are to each
    other.

    Args:
      probes: float32 [N, D], unit rows.
      anchors: the set.
      k: the support set's size; the anchor set's own default if None.
      labels: int [N], the probes' identities in the anchors' numbering, each excluded from its own
        support set.
      sample: at most so many probes, and as many anchors, are looked at, drawn from `seed`.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: as `support_sets`; fewer than k anchors of other identities; no probes.
    """
    n = len(probes)
    if n < 1:
        raise UserError("0 probes were given: expected at least 1")
    k = anchors.k if k is None else k
    own = np.mean(
        own_neighbours(anchors, k=k, sample=sample, seed=seed, searcher=searcher).similarities, 1
    )
    rows = np.sort(np.random.default_rng(seed).choice(n, min(sample, n), replace=False))
    chosen = None if labels is None else np.asarray(labels)[rows]
    found = support_sets(probes[rows], anchors, k=k, labels=chosen, searcher=searcher)
    similarity = np.mean(found.similarities, axis=1)
    below = int(np.count_nonzero(similarity < np.quantile(own, _UNCOVERED)))
    share = below / rows.size
    return Coverage(
        rows.size,
        float(similarity.mean()),
        float(own.mean()),
        share,
        share > _WRONG_DOMAIN and below >= _FEWEST_UNCOVERED,
    )
