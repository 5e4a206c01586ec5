"""The faces of a 1:N job: a row of a file each, or a template of several rows.

N faces, D embedding.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.parts import cut
from ida_jax.common.validation import UnitRows, rows_are, unit_rows
from ida_jax.tables.embeddings import names_beside, read_embeddings
from ida_jax.tables.identities import read_people
from ida_jax.tables.parquet_files import row_place

_FACES = 4096
# Images of templates at once. Not an option: the last bits of a sum depend on where it is cut.
_IMAGES = 8192


class Bad(NamedTuple):
    """What is zero, NaN or infinite.

    Attributes:
      faces: bool [n], faces without a usable embedding.
      images: how many images were left out of templates.
    """

    faces: np.ndarray
    images: int


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces of a file, n of them, which are never in memory at once.

    Attributes:
      path: the file.
      embeddings: its rows [N, D], of any norm, mapped from .npy.
      names: n; None where unknown.
      fingerprint: of the model that made them; "" where unknown.
      template: int64 [N], the face of each row of the file; None where a face is a row.
      first_row: int64 [n], the first row of each template; None likewise.
      skip_bad: zero, NaN and infinite faces are NaN, and such images left out of their templates,
        instead of being refused.
    """

    path: Path
    embeddings: np.ndarray
    names: list[str] | None
    fingerprint: str
    template: np.ndarray | None = None
    first_row: np.ndarray | None = None
    skip_bad: bool = False

    def __len__(self) -> int:
        """n."""
        return len(self.embeddings if self.first_row is None else self.first_row)

    @property
    def width(self) -> int:
        """D."""
        return self.embeddings.shape[1]

    def unit(self, rows: np.ndarray) -> UnitRows:
        """Some of the faces as unit rows.

        Raises:
          UserError: faces or images that are zero, NaN or infinite, named by their number, unless
            they are skipped.
        """
        if self.template is not None:
            pooled, _ = self._pooled(rows)
            what = f"{self.path}: templates"
            unit = unit_rows(pooled, skip_bad=True, what=what)
            if unit.bad.any() and not self.skip_bad:
                raise UserError(
                    f"{what}: the images of {self.names[rows[np.argmax(unit.bad)]]!r} cancel out, "
                    "so that their mean has no direction: leave it out"
                )
            return unit
        return unit_rows(
            self.embeddings,
            rows=rows,
            skip_bad=self.skip_bad,
            what=f"{self.path}: embeddings",
            place=row_place(self.path),
        )

    def sample(self, count: int) -> np.ndarray:
        """Unit rows of so many of the faces at random, or of all, float32 [n, D]; no bad ones."""
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:count])
        unit = self.unit(rows)
        return unit.embeddings[~unit.bad]

    def bad(self) -> Bad:
        """Which faces are zero, NaN or infinite: all are read, a block at a time."""
        bad, images = np.zeros(len(self), bool), 0
        for block in cut(len(self), _FACES):
            rows = np.arange(block.start, block.stop)
            if self.template is None:
                unit = unit_rows(self.embeddings, rows=rows, skip_bad=True)
            else:
                pooled, without = self._pooled(rows)
                unit, images = unit_rows(pooled, skip_bad=True), images + without
            bad[rows] = unit.bad
        return Bad(bad, images)

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows by template, int64 [N], and where each template's begin, [n + 1]."""
        sizes = np.bincount(self.template, minlength=len(self))
        return np.argsort(self.template, kind="stable"), np.r_[0, np.cumsum(sizes)]

    def _pooled(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """The means of templates, float64 [r, D], and how many images were left out of them."""
        from scipy.sparse import csr_array

        order, first = self._images
        sums, counts, skipped = np.zeros((len(rows), self.width)), np.zeros(len(rows)), 0
        for some in _runs(first[rows + 1] - first[rows]):
            of = rows[some]
            images = np.concatenate([order[first[t] : first[t + 1]] for t in of.tolist()])
            ends = np.r_[0, np.cumsum(first[of + 1] - first[of])]
            for piece in cut(len(images), _IMAGES):  # one, but of a template that is larger
                own = images[piece.start : piece.stop]
                slab = np.asarray(self.embeddings[own], np.float64)
                square = np.einsum("nd,nd->n", slab, slab)
                good = np.isfinite(square) & (square > 0)
                if not good.all():
                    skipped += self._without(own[~good])
                    slab[~good] = 0
                at = np.clip(ends - piece.start, 0, len(own))
                shape = (len(of), len(own))
                pool = csr_array((good.astype(np.float64), np.arange(len(own)), at), shape=shape)
                sums[some] += pool @ slab
                counts[some] += pool.sum(axis=1)
        return sums / np.maximum(counts, 1)[:, None], skipped

    def _without(self, bad: np.ndarray) -> int:
        if not self.skip_bad:
            wrong, place = np.sort(bad), row_place(self.path)
            first = "" if place is None else f" ({place(int(wrong[0]))})"
            raise UserError(
                f"{self.path}: embeddings: {rows_are(wrong)} zero, NaN or infinite{first}: embed "
                "such an image again, or leave it out of its template (--skip_bad)"
            )
        return len(bad)


def _runs(sizes: np.ndarray) -> Iterator[slice]:
    """Templates of these sizes in runs of at most `_IMAGES` images; a larger one is alone.

    No template is cut by where a block of them ends: its mean has the same bits in any block.
    """
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _IMAGES, side="right")))
        yield slice(start, stop)
        start = stop


def skipped_images(count: int) -> str:
    """What a command says of images that were left out of their templates."""
    are = "image is" if count == 1 else "images are"
    return f"{count:,} {are} zero, NaN or infinite and left out of the templates"


def read_faces(
    path: str | os.PathLike[str],
    *,
    names: str | os.PathLike[str] | None = None,
    templates: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
) -> Faces:
    """Faces of a file of embeddings.

    A template is the mean of its images' embeddings as the model gave them (as
    `ida_jax.metrics.templates` pools, each image a medium of its own), in the order in which
    templates begin; pooled a block at a time.

    Args:
      path: see `read_embeddings`; what `ida-jax embed` writes beside an .npy is read too.
      names: one per line.
      templates: the template of each row, .npy or text of integers or names, which name the faces.
      skip_bad: see `Faces`.

    Raises:
      UserError: as `read_embeddings` and `read_people`; names beside templates.
    """
    path = Path(path)
    if names is not None and templates is not None:
        raise UserError("--names and --templates both name the faces: give one of them")
    if path.suffix.lower() == ".npy" and templates is None:
        names = names_beside(path, None if names is None else Path(names))
    embeddings, own, fingerprint = read_embeddings(path, names=names)
    if templates is None:
        return Faces(path, embeddings, own, fingerprint, skip_bad=skip_bad)
    people = read_people(templates, len(embeddings))
    if people.dtype.kind != "U" and people.min() < 0:
        raise UserError(f"{templates}: row {int(np.argmin(people))} is negative, no template")
    _, first, number = np.unique(people, return_index=True, return_inverse=True)
    order = np.argsort(first)
    template = np.argsort(order)[number]
    first = first[order]
    named = [str(person) for person in people[first].tolist()]
    return Faces(path, embeddings, named, fingerprint, template, first, skip_bad)
