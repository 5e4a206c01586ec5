"""Whether anchors are of the faces' domain: the faces' support sets beside the anchors' own.

Ours, not the paper's: it takes anchors of the right domain for granted. Among anchors of another
one log F measures how far a face lies from that domain, and IDA can rank worse than the cosine
does. The anchors' neighbourhoods among themselves say how near a covered face's support set is.
`coverage` looks at the tail: faces that lie outside. Anchors of another domain that overlaps the
faces' shift the bulk instead, which `ida_jax.anchors.supported_weight` judges.

N faces, A anchors, D embedding, K support, S sampled anchors.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.ops.dao import log_density as log_density_of
from ida_jax.ops.hypersphere import Neighbours

_UNCOVERED = 0.01
_SAMPLE = 1000  # anchors, or probes, that are examined
# Of faces from the anchors' domain 1 % lie below the 1st percentile. On LFW: 0.6 %, 1.5 % with 300
# anchors, 3 to 4 % among grey anchors or ones with red and blue exchanged; IDA gained in each of
# these. From 11 % on (half of the domain, by a principal direction) it cost TAR; another model's
# embeddings have 81 %, rendered, upside-down or half-covered faces 100 %. Of 200 draws of 100
# anchors from the right domain none was above 10 %; with 20 anchors one in ten is.
_WRONG_DOMAIN = 0.10
_FEWEST_UNCOVERED = 3  # one or two faces prove nothing


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
      faces: the number of probes examined.
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
    anchors: AnchorSet, *, k: int, sample: int = _SAMPLE, seed: int = 0, searcher: str = "auto"
) -> Neighbours:
    """Support sets of anchors among the anchors of other identities.

    An anchor without a known identity counts as a person of its own.

    Args:
      sample: at most this many anchors are examined, drawn from `seed`.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Returns:
      `Neighbours` [S, K], S = min(sample, A).
    """
    a = len(anchors)
    if not 1 <= k < a:
        raise UserError(
            f"k = {k} neighbours of an anchor among the others were asked for, in a set of {a}: "
            "lower k or take more anchors"
        )
    labels = anchors.people()
    rows = sampled_rows(anchors, sample=sample, seed=seed)
    return support_sets(
        np.asarray(anchors.embeddings[rows]),
        replace(anchors, labels=labels),
        k=k,
        labels=labels[rows],
        searcher=searcher,
    )


def sampled_rows(anchors: AnchorSet, *, sample: int = _SAMPLE, seed: int = 0) -> np.ndarray:
    """int [S], ascending: the anchors that `own_neighbours` examines with the same arguments."""
    a = len(anchors)
    return np.sort(np.random.default_rng(seed).choice(a, min(sample, a), replace=False))


def own_neighbourhood(
    anchors: AnchorSet,
    *,
    k: int,
    tau: float,
    sample: int = _SAMPLE,
    seed: int = 0,
    searcher: str = "auto",
) -> Neighbourhood:
    """The in-domain reference: how near anchors lie to the anchors of other identities.

    Args: as in `own_neighbours`.
      tau: τ of log F.

    Raises:
      UserError: fewer than k anchors of other identities.
    """
    nearest = own_neighbours(anchors, k=k, sample=sample, seed=seed, searcher=searcher).similarities
    return Neighbourhood(np.mean(nearest, axis=1), np.asarray(log_density_of(nearest, tau=tau)))


def coverage(
    probes: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int | None = None,
    labels: np.ndarray | None = None,
) -> Coverage:
    """Whether the anchors are of the probes' domain: the probes' support sets beside their own.

    At most 1,000 probes, and as many anchors, are examined, drawn at random.

    It finds anchors that lie elsewhere, are another model's, or fill a corner of the domain only.
    It cannot distinguish random directions from faces: every probe is as near to them as they
    are to each other.

    Args:
      probes: float32 [N, D], unit rows.
      k: the support set's size; the anchor set's own default if None.
      labels: int [N], the probes' identities in the anchors' numbering, each excluded from its own
        support set.

    Raises:
      UserError: as `support_sets`; fewer than k anchors of other identities; no probes.
    """
    n = len(probes)
    if n < 1:
        raise UserError("0 probes were given: expected at least 1")
    k = anchors.k if k is None else k
    own = np.mean(own_neighbours(anchors, k=k).similarities, 1)
    rows = np.sort(np.random.default_rng(0).choice(n, min(_SAMPLE, n), replace=False))
    chosen = None if labels is None else np.asarray(labels)[rows]
    neighbours = support_sets(probes[rows], anchors, k=k, labels=chosen)
    similarity = np.mean(neighbours.similarities, axis=1)
    below = int(np.count_nonzero(similarity < np.quantile(own, _UNCOVERED)))
    share = below / rows.size
    return Coverage(
        rows.size,
        float(similarity.mean()),
        float(own.mean()),
        share,
        share > _WRONG_DOMAIN and below >= _FEWEST_UNCOVERED,
    )
