"""What every protocol is given by the command, and what several of them make of it.

N faces, D embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_rows
from ida_jax.rescoring.methods import labels_among_anchors
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.embeddings import EmbeddingFile

FARS = (1e-3, 1e-4, 1e-5)


class Request(NamedTuple):
    """What is to be evaluated, whatever the protocol.

    Attributes:
      protocol: its name.
      path: the file of embeddings.
      embeddings: what it holds.
      files: the protocol's files; None where none were given.
      names: the file of names that was given, None without one.
      anchors: the folder of the anchors, where they come from a workdir.
      skip_bad: goes on past embeddings that are zero, NaN or infinite.
      resamples: of the bootstrap.
      seed: of the bootstrap.
    """

    protocol: str
    path: Path
    embeddings: EmbeddingFile
    files: Path | None = None
    names: Path | None = None
    anchors: Path | None = None
    skip_bad: bool = False
    resamples: int = 1000
    seed: int = 0

    @property
    def bootstrap(self) -> dict[str, Any]:
        """The bootstrap's arguments."""
        return {"resamples": self.resamples, "seed": self.seed}


class Faces(NamedTuple):
    """Unit rows of all embeddings.

    Attributes:
      embeddings: float32 [N, D], with a stand-in for each bad one.
      bad: bool [N].
      notes: how many are bad, if any.
    """

    embeddings: np.ndarray
    bad: np.ndarray
    notes: tuple[str, ...]


def unit_faces(request: Request) -> Faces:
    """The request's embeddings as unit rows.

    Raises:
      UserError: bad rows, named by number, unless they are skipped.
    """
    what = f"embeddings in {request.path}"
    faces, bad = unit_rows(request.embeddings.embeddings, skip_bad=request.skip_bad, what=what)
    if not bad.any():
        return Faces(faces, bad, ())
    faces[bad] = np.eye(1, faces.shape[1], dtype=np.float32)
    return Faces(faces, bad, (f"{int(bad.sum()):,} faces without an embedding never match",))


def required_names(request: Request) -> Sequence[str]:
    """The embeddings' names, N.

    Raises:
      UserError: there are none.
    """
    if request.embeddings.names is None:
        raise UserError(
            f"{request.path} has no names, which --protocol={request.protocol} looks images "
            "up by: give --names=FILE, one a line in the embeddings' order"
        )
    return request.embeddings.names


def terms_of_people(
    faces: np.ndarray, people: Sequence[str], scorers: Mapping[str, Rescorer]
) -> dict[str, FaceTerms]:
    """Every method's terms; people among named anchors are left out of their own support sets."""
    own = labels_among_anchors(people, scorers)
    return {name: scorer.terms(faces, labels=own) for name, scorer in scorers.items()}


def file_inside(path: Path, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    return path / name if path.is_dir() else path


def names_beside(embeddings: Path, names: Path | None) -> Path | None:
    """The names' file that was given, or the one that `ida_jax.embed` writes beside an .npy."""
    beside = embeddings.with_suffix(".names.txt")
    return beside if names is None and beside.is_file() else names
