"""MegaFace's challenge 1: rank-1 identification of FaceScrub's probes among distractors.

Each image of an identity in turn is the gallery's mate g, the identity's other images are the
probes p: n images make n(n−1) searches. Other FaceScrub identities are not in the gallery. A search
is right where the mate's score is strictly the highest:

    s(g, p) > max over distractors d of s(d, p)

A tie is a fault, and so is a NaN. Rank-1 is the share of right searches, over all (p, g).
FaceScrub's 3,530 images of 80 identities make 153,634 searches.

F probes, M searches, S sizes of the gallery.
Source: Kemelmacher-Shlizerman et al., CVPR 2016, and its development kit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError

SIZES = (10, 100, 1000, 10_000, 100_000, 1_000_000)


class Searches(NamedTuple):
    """All searches, by ascending probe, then mate.

    Attributes:
      probe: int32 [M], the probe's row.
      mate: int32 [M], the row of the gallery's image of the same identity.
      identity: int32 [M], whose search it is, from 0 without gaps; identities of a single image
        have none.
      identities: how many there are.
    """

    probe: np.ndarray
    mate: np.ndarray
    identity: np.ndarray
    identities: int


class Rank1(NamedTuple):
    """Rank-1 identification.

    Attributes:
      rate: float64 [S], the share of right searches.
      faults: int64 [S], how many were wrong.
      right: bool [M, S], each search's outcome.
    """

    rate: np.ndarray
    faults: np.ndarray
    right: np.ndarray


def searches(labels: ArrayLike) -> Searches:
    """All (p, g) of one identity, p ≠ g.

    Args:
      labels: int [F], the probes' identities.

    Raises:
      UserError: labels that are no flat array of integers, or no identity with two images.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)}: expected integers [F], one a probe"
        )
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    several = counts > 1
    if not several.any():
        raise UserError(
            f"{len(labels)} probes of {len(counts)} identities: expected an identity with two "
            "images or more, since one of them is the gallery's"
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
    return Searches(
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

    Raises:
      UserError: a size below 1.
    """
    if wrong := [size for size in sizes if size < 1]:
        raise UserError(f"{wrong[0]} distractors were asked for, expected 1 or more")
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
