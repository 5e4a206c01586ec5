"""LFW as the other scripts read it: the given embeddings, and whose image each row is.

    DATA/lfw/names.txt                      PERSON/PERSON_0001, a row each
    DATA/lfw/split.csv                      identity,role,…: role "anchor" or "eval"
    DATA/lfw/mobilefacenet_embeddings.npy   float32 [N, D], in the order of the names

N faces, D embedding.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.data.lfw_crops import read_split

HALVES = ("anchor", "eval")


class LfwFaces(NamedTuple):
    """Whose image each row is.

    Attributes:
      names: N of them.
      people: the identities' names, in ascending order.
      labels: int32 [N], places in `people`.
      number: int [N], an image's number among its person's, from 1.
      half: [N], the role of the split: one of `HALVES`.
    """

    names: list[str]
    people: np.ndarray
    labels: np.ndarray
    number: np.ndarray
    half: np.ndarray

    def rows(self, half: str, *, images: int | None = None) -> np.ndarray:
        """bool [N]: the faces of one half, of each person the first images, or all."""
        chosen = self.half == half
        return chosen if images is None else chosen & (self.number <= images)


def lfw_faces(root: Path) -> LfwFaces:
    names = (root / "names.txt").read_text(encoding="utf-8").split()
    roles = read_split(root / "split.csv")
    people, labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    number = np.array([int(name.rsplit("_", 1)[1]) for name in names])
    half = np.array([roles[person] for person in people.tolist()])[labels]
    return LfwFaces(names, people, labels.astype(np.int32), number, half)


def lfw_embeddings(root: Path) -> np.ndarray:
    """float32 [N, D], as the given MobileFaceNet makes them."""
    return np.load(root / "mobilefacenet_embeddings.npy")
