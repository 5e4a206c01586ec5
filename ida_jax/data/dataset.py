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


class ImageSubset(Sequence[np.ndarray]):
    """Some rows of a sequence of images, each fetched when it is asked for."""

    def __init__(self, images: Sequence[np.ndarray], rows: np.ndarray) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[self._rows[index]]
