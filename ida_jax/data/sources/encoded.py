"""Labelled faces as encoded images: what `python -m ida_jax.prepare` makes data sets of.

N faces, C identities.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class EncodedFaces(NamedTuple):
    """A source of faces, read when asked for.

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
