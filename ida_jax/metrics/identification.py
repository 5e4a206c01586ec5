"""Identification, 1:N: open-set and closed-set searches, and MegaFace's rank-1 among distractors.

A mated search is of a person who is in the gallery, a non-mated one of a person who is not. By
NIST's definitions (FRVT 1:N):

    TPIR(t) = share of mated searches whose mate scores strictly above t, at whatever rank
    FPIR(t) = share of non-mated searches in which any gallery face scores strictly above t
    rank-k  = share of mated searches whose mate is among the k highest scores (closed set)

TPIR at a FPIR f is thus `roc.tar_at_far` of the mates' scores against each non-mated search's
highest score, by its rule: the threshold is the ⌊f·Q⌋-th highest of them, and f is never exceeded.

MegaFace's challenge 1 searches FaceScrub's probes among distractors. Each image of an identity in
turn is the gallery's mate g, the identity's other images are the probes p: n images make n(n−1)
searches (153,634 of FaceScrub's 3,530 images of 80 identities). Other FaceScrub identities are not
in the gallery. A search is right where the mate's score is strictly the highest:

    s(g, p) > max over distractors d of s(d, p)

A tie is a fault, and so is a NaN. Rank-1 is the share of right searches, over all (p, g). Source:
Kemelmacher-Shlizerman et al., CVPR 2016, and its development kit.

M mated and Q non-mated searches; F probes, S sizes of the gallery.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import far_key
from ida_jax.metrics.roc import tar_at_far

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
DISTRACTOR_SIZES = (10, 100, 1000, 10_000, 100_000, 1_000_000)


class Searches(NamedTuple):
    """The outcome of searches of one gallery.

    Attributes:
      mate: [M], the mates' scores.
      rank: int [M], the mates' ranks from 1; any number past the highest requested rank where the
        mate is not among the candidates.
      highest: [Q], each non-mated search's highest score.
    """

    mate: np.ndarray
    rank: np.ndarray
    highest: np.ndarray


def search_figures(
    searches: Searches, *, fpirs: Sequence[float] = FPIRS, ranks: Sequence[int] = RANKS
) -> dict[str, Any]:
    """TPIR at each FPIR with its threshold and false alarms, and the rank-k rates.

    Raises:
      UserError: no mated or no non-mated searches, or a FPIR outside (0, 1].
    """
    points = {far_key(point.far): point for point in tar_at_far(*searches[::2], fpirs)}
    return {
        "mated_probes": int(searches.mate.size),
        "nonmated_probes": int(searches.highest.size),
        "tpir@fpir": {fpir: point.tar for fpir, point in points.items()},
        "threshold@fpir": {fpir: point.threshold for fpir, point in points.items()},
        "false_alarms": {fpir: point.false_accepts for fpir, point in points.items()},
        "rank": {str(k): float(np.mean(searches.rank <= k)) for k in ranks},
    }


def joined_figures(
    mate: ArrayLike,
    rank: ArrayLike,
    others: ArrayLike,
    *,
    gallery: int,
    fpirs: Sequence[float] = FPIRS,
) -> dict[str, Any]:
    """InsightFace's 1:N figures, of one gallery that has every probe's mate (ijb_1n.py).

    There is no search without a mate, so that its "FAR" f is not the FPIR above: its threshold is
    the ⌈f·M⌉-th highest of all scores of probes with others than their mates, several of one probe
    among them, and its TPIR the share of mates that score strictly above.

    Args:
      mate: [M], the mates' scores.
      rank: int [M], the mates' ranks from 1.
      others: [O], at least the ⌈f·M⌉ highest scores with others.
      gallery: its size.
    """
    mate, ordered = np.asarray(mate), np.sort(np.asarray(others))[::-1]
    thresholds = {far_key(f): float(ordered[math.ceil(mate.size * f) - 1]) for f in fpirs}
    return {
        "mated_probes": int(mate.size),
        "nonmated_probes": 0,
        "gallery": gallery,
        "tpir@fpir": {f: float(np.mean(mate > at)) for f, at in thresholds.items()},
        "threshold@fpir": thresholds,
        "rank": {str(k): float(np.mean(np.asarray(rank) <= k)) for k in RANKS},
    }


def mate_ranks(candidates: np.ndarray, mates: np.ndarray) -> np.ndarray:
    """int64 [M]: each mate's place, from 1, among the candidates, best first.

    Args:
      candidates: int [M, top], gallery rows.
      mates: int [M], the mate's gallery row; its rank is top + 1 where it is not among them.
    """
    hits = np.asarray(candidates) == np.asarray(mates)[:, None]
    return np.where(hits.any(axis=1), 1 + np.argmax(hits, axis=1), 1 + hits.shape[1])


class DistractorSearches(NamedTuple):
    """MegaFace's searches, by ascending probe, then mate.

    Attributes:
      probe: int32 [M], the probe's row.
      mate: int32 [M], the row of the gallery's image of the same identity.
      identity: int32 [M], the search's identity, from 0 without gaps; identities of a single image
        have none.
      identities: the number of them.
    """

    probe: np.ndarray
    mate: np.ndarray
    identity: np.ndarray
    identities: int


class Rank1(NamedTuple):
    """Rank-1 identification.

    Attributes:
      rate: float64 [S], the share of right searches.
      faults: int64 [S], the number of wrong ones.
      right: bool [M, S], each search's outcome.
    """

    rate: np.ndarray
    faults: np.ndarray
    right: np.ndarray


def distractor_searches(labels: ArrayLike) -> DistractorSearches:
    """All (p, g) of one identity, p ≠ g.

    Args:
      labels: int [F], the probes' identities.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)}: expected integers [F], one per probe"
        )
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    several = counts > 1
    if not several.any():
        raise UserError(
            f"{len(labels)} probes of {len(counts)} identities: expected an identity with at "
            "least two images, since one of them is the gallery's"
        )
    probe, mate = [], []
    for identity in np.flatnonzero(several):
        rows = np.flatnonzero(codes == identity)
        first, second = (side.ravel() for side in np.meshgrid(rows, rows, indexing="ij"))
        probe.append(first[first != second])
        mate.append(second[first != second])
    probe, mate = np.concatenate(probe), np.concatenate(mate)
    order = np.lexsort((mate, probe))
    number = np.cumsum(several) - 1
    return DistractorSearches(
        probe[order].astype(np.int32),
        mate[order].astype(np.int32),
        number[codes[probe[order]]].astype(np.int32),
        int(several.sum()),
    )


def prefix_sets(sizes: Sequence[int], kept: ArrayLike | None = None) -> dict[int, np.ndarray]:
    """{size: the rows of its distractors}: the first `size` of the list.

    Args:
      sizes: numbers of distractors, as the list counts them.
      kept: int [N] ascending, places in the whole list of those that are left where noisy ones were
        deleted; a size then has as many fewer, and rows count what is left.
    """
    if wrong := [size for size in sizes if size < 1]:
        raise UserError(f"{wrong[0]} distractors were requested, expected at least 1")
    if kept is None:
        return {int(size): np.arange(size) for size in sorted(set(sizes))}
    kept = np.asarray(kept)
    return {int(size): np.arange(np.searchsorted(kept, size)) for size in sorted(set(sizes))}


def rank1(mate_scores: ArrayLike, highest: ArrayLike, probe: ArrayLike) -> Rank1:
    """Rank-1 from scores.

    Args:
      mate_scores: [M], s(g, p) of each search.
      highest: [F, S], each probe's highest score with the distractors of each size; −inf where none
        may match.
      probe: int [M], each search's probe.
    """
    right = np.asarray(mate_scores)[:, None] > np.asarray(highest)[np.asarray(probe)]
    return Rank1(np.mean(right, axis=0), np.count_nonzero(~right, axis=0), right)
