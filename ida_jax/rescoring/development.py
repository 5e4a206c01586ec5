"""Development faces of known people, and their support sets: what fits of constants share.

In use neither person of a pair is among the anchors. Where development people are, both
identities of a pair are left out of its two support sets: otherwise the partner of an impostor pair
with a high cosine is at the top of the support set, which gives the pair away.

N faces, A anchors, D embedding, K support, P pairs.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import refuse_self_matches
from ida_jax.anchors.search import largest_identity, support_sets
from ida_jax.common.errors import UserError


class Development(NamedTuple):
    """The faces that are fitted on, and where they may search.

    Attributes:
      rows: int [N], their rows among the given ones, ascending.
      labels: int [N], their identities, numbered from 0.
      identities: how many people they are.
      anchors: the anchors, with labels in the same numbering where they are known; −1 for others.
      own: the most anchors of one person, where labels are known: spare neighbours.
    """

    rows: np.ndarray
    labels: np.ndarray
    identities: int
    anchors: AnchorSet
    own: int

    @property
    def most_neighbours(self) -> int:
        """The neighbours that every face has, both identities of any pair left out."""
        return len(self.anchors) - 2 * self.own

    def support(self, faces: np.ndarray, k: int, *, searcher: str) -> "Support":
        """The faces' nearest anchors, as many as leave k without a partner's.

        Args:
          faces: float32 [N, D], unit rows.

        Raises:
          UserError: faces that are themselves among their anchors.
        """
        neighbours = support_sets(
            faces, self.anchors, k=k + self.own, labels=self.labels if self.own else None,
            searcher=searcher,
        )  # fmt: skip
        refuse_self_matches(neighbours.similarities)
        owners = np.full(neighbours.indices.shape, -1)
        if self.own:
            owners = self.anchors.labels[neighbours.indices]
        return Support(neighbours.similarities, owners, self.labels, k)


class Support(NamedTuple):
    """Faces' nearest anchors of other people.

    Attributes:
      similarities: float32 [N, K + spare], descending.
      owners: int [N, K + spare], the anchors' identities in the numbering of `labels`.
      labels: int [N], the faces' identities.
      k: K.
    """

    similarities: np.ndarray
    owners: np.ndarray
    labels: np.ndarray
    k: int

    def without(self, own: np.ndarray, partner: np.ndarray) -> np.ndarray:
        """float32 [P, K]: similarities of the faces `own`, their partners' identities left out."""
        out = self.similarities[own, : self.k]
        partners = self.owners[own] == self.labels[partner][:, None]
        hit = np.flatnonzero(partners.any(axis=1))
        others = np.argsort(partners[hit], axis=1, kind="stable")[:, : self.k]
        out[hit] = np.take_along_axis(self.similarities[own[hit]], others, axis=1)
        return out


def development(
    faces: np.ndarray,
    labels: np.ndarray,
    anchors: AnchorSet,
    *,
    images_per_identity: int,
    exclude_own: bool,
) -> Development:
    """The first faces of each known person, and the anchors in their numbering.

    Args:
      faces: [N, D].
      labels: int [N], identities; a negative one is unknown, and its face left out.
      images_per_identity: at most this many faces of an identity are taken, the first ones.
      exclude_own: the anchors' labels, where they have any, are in the numbering of `labels`.
    """
    labels = np.asarray(labels)
    if labels.shape != faces.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)} for {len(faces)} faces: "
            "expected one integer for each face"
        )
    people = np.unique(labels[labels >= 0]).size
    if people < 2:
        raise UserError(f"the labels name {people} identities: expected at least 2")
    if images_per_identity < 2:
        raise UserError(f"images_per_identity is {images_per_identity}: expected at least 2")
    rows = first_rows(labels, images_per_identity)
    identities, labels = np.unique(labels[rows], return_inverse=True)
    known = exclude_own and anchors.labels is not None
    of_anchors = _renumbered(np.asarray(anchors.labels), identities) if known else None
    searched = AnchorSet(anchors.embeddings, of_anchors, fingerprint=anchors.fingerprint)
    own = largest_identity(of_anchors) if known else 0
    return Development(rows, labels, len(identities), searched, own)


def first_rows(labels: np.ndarray, most: int) -> np.ndarray:
    """Rows of known identity, at most the first `most` of each, ascending."""
    rows = np.flatnonzero(labels >= 0)
    order = rows[np.argsort(labels[rows], kind="stable")]
    number_within = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return np.sort(order[number_within < most])


def _renumbered(labels: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """The anchors' labels in the numbering of the ascending identities, −1 for all others."""
    place = np.minimum(np.searchsorted(identities, labels), len(identities) - 1)
    return np.where(identities[place] == labels, place, -1).astype(np.int32)
