"""The faces of a 1:N job: a row of a file each, or a template of several rows.

N faces, D embedding.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import UnitRows, unit_rows
from ida_jax.metrics.templates import pool_templates, pooling_matrix
from ida_jax.tables.embeddings import names_beside, read_embeddings
from ida_jax.tables.identities import read_people
from ida_jax.tables.parquet_files import row_place


class Faces(NamedTuple):
    """Faces of a file.

    Attributes:
      path: the file.
      embeddings: [N, D], of any norm, mapped where they are not templates.
      names: N; None where unknown.
      fingerprint: of the model that made them; "" where unknown.
      template: int64, the face of each row of the file; None where a face is a row.
      first_row: int64 [N], the first row of each template; None likewise.
    """

    path: Path
    embeddings: np.ndarray
    names: list[str] | None
    fingerprint: str
    template: np.ndarray | None = None
    first_row: np.ndarray | None = None

    @property
    def images(self) -> int:
        """The rows of the file."""
        return len(self.embeddings if self.template is None else self.template)

    def unit(self, rows: np.ndarray) -> UnitRows:
        """Some of the faces as unit rows.

        Raises:
          UserError: faces that are zero, NaN or infinite, named by their number.
        """
        what = "embeddings" if self.template is None else "templates"
        place = row_place(self.path) if self.template is None else None
        return unit_rows(self.embeddings, rows=rows, what=f"{self.path}: {what}", place=place)


def read_faces(
    path: str | os.PathLike[str],
    *,
    names: str | os.PathLike[str] | None = None,
    templates: str | os.PathLike[str] | None = None,
) -> Faces:
    """Faces of a file of embeddings.

    A template is the mean of its images' embeddings as the model gave them (`pool_templates`, each
    image a medium of its own), in the order in which templates begin; pooled in memory.

    Args:
      path: see `read_embeddings`; what `ida-jax embed` writes beside an .npy is read too.
      names: one a line.
      templates: the template of each row, .npy or text of integers or names, which name the faces.

    Raises:
      UserError: as `read_embeddings` and `read_people`; names beside templates; bad rows, or a
        template whose mean is zero, named.
    """
    path = Path(path)
    if names is not None and templates is not None:
        raise UserError("--names and --templates both name the faces: give one of them")
    if path.suffix.lower() == ".npy" and templates is None:
        names = names_beside(path, None if names is None else Path(names))
    embeddings, own, fingerprint = read_embeddings(path, names=names)
    if templates is None:
        return Faces(path, embeddings, own, fingerprint)
    people = read_people(templates, len(embeddings))
    if people.dtype.kind != "U" and people.min() < 0:
        raise UserError(f"{templates}: row {int(np.argmin(people))} is negative, no template")
    _, first, number = np.unique(people, return_index=True, return_inverse=True)
    order = np.argsort(first)
    template = np.argsort(order)[number]
    matrix = pooling_matrix(template, np.arange(len(people)))
    pooled = pool_templates(matrix, embeddings) / matrix.sum(axis=1)[:, None]
    first = first[order]
    named = [str(person) for person in people[first].tolist()]
    return Faces(path, pooled, named, fingerprint, template, first)
