"""Labelled face images as every part of ida_jax sees them.

N faces, C identities (classes), H height, W width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class FaceDataset(NamedTuple):
    """Face crops with their identities.

    Attributes:
      images: a sequence of N images; `images[i]` is uint8 [H, W, 3] in RGB order. An array, or an
        object that decodes the image when it is asked for.
      labels: int32 [N], the identity of each face, in 0 … C-1.
      identities: the C identities' names; `identities[labels[i]]` is the person on image i.
      names: the N images' names, as pair lists write them; empty where images have none.
      domains: int32 [N], the domain (a group with its own distribution, the paper's section 3.3)
        of each face, or None where it is not known.
      domain_names: the domains' names.
    """

    images: Sequence[np.ndarray]
    labels: np.ndarray
    identities: tuple[str, ...]
    names: tuple[str, ...] = ()
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()

    @property
    def num_identities(self) -> int:
        """C, the number of classes."""
        return len(self.identities)


def first_of_each_identity(labels: np.ndarray) -> np.ndarray:
    """Row of each identity's first face, int64 [distinct labels], by ascending label."""
    _, rows = np.unique(labels, return_index=True)
    return rows
