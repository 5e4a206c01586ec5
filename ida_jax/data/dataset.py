"""Labelled face images as every part of ida_jax sees them.

N faces, C identities (classes), H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class EncodedFaces(NamedTuple):
    """Faces as encoded images, read when asked for: what `ida_jax.prepare` makes data sets of.

    Attributes:
      images: N encoded images (JPEG, PNG), bytes each; an image that cannot be read raises.
      labels: int32 [N], 0 … C−1.
      identities: the C identities' names.
      where: names the image of a row in messages: its file, and offset or path.
      notes: what a user should know (counts that differ from what the source promises).
    """

    images: Sequence[bytes]
    labels: np.ndarray
    identities: tuple[str, ...]
    where: Callable[[int], str]
    notes: tuple[str, ...] = ()


class LazyImages(Sequence[Any]):
    """`count` images, each `fetch(index)` when it is asked for; pickles where `fetch` does."""

    def __init__(self, count: int, fetch: Callable[[int], Any]) -> None:
        self._indices, self._fetch = range(count), fetch

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._fetch(self._indices[index])


def image_subset(images: Sequence[np.ndarray], rows: np.ndarray) -> LazyImages:
    """Some rows of a sequence of images, each fetched when it is asked for."""
    return LazyImages(len(rows), lambda index: images[rows[index]])
