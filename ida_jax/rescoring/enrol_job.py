"""Enrolment from files: embeddings into a gallery, resumable, all of them or none.

The faces' numbers, which need the search in the anchors, are made in parts beside the gallery: the
same command continues where it was killed. The gallery is changed at the end, in one moment.

N faces, D embedding.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.parts import Parts, folder_beside, key_of, remove_empty, remove_parts, stamp
from ida_jax.common.progress import progress_bar
from ida_jax.rescoring.face_files import Faces
from ida_jax.rescoring.gallery_file import DTYPES, LIST, GalleryFile
from ida_jax.rescoring.methods import require_same_models
from ida_jax.rescoring.rescorer import Rescorer

_FACE_SLAB = 4096


class Enrolled(NamedTuple):
    """What an enrolment did.

    Attributes:
      enrolled: new faces.
      replaced: how many of them took the place of another of their name.
      already: faces that were enrolled with the same embedding before.
      faces: of the gallery now.
      seconds: of the whole job.
    """

    enrolled: int
    replaced: int
    already: int
    faces: int
    seconds: float


def enrol_faces(
    folder: Path,
    faces: Faces,
    scorer: Rescorer,
    *,
    settings: Sequence[object],
    dtype: str | None = None,
    replacing: bool = False,
    verify: bool = False,
) -> Enrolled:
    """Enrols faces in a gallery, which is made where there is none.

    A face whose name is enrolled with the same embedding is left as it is, so that a command whose
    end nobody saw can be run again.

    Args:
      folder: the gallery's, which exists and which no other job writes.
      scorer: the method, with what the gallery was made with.
      settings: JSON-able, what else the faces' numbers depend on (files): an interrupted job
        continues only with the same.
      dtype: of a new gallery, float32 if None.
      replacing: faces of enrolled names take their places.
      verify: as in `GalleryFile.open`.

    Raises:
      UserError: faces without names, or of another width or model than the gallery's; a gallery of
        another method, k, τ, anchors or dtype; names that are enrolled with another embedding;
        bad rows, named.
    """
    start = time.perf_counter()
    if faces.names is None:
        raise UserError(
            f"{faces.path} has no names, by which faces are enrolled: give --names=FILE, one a line"
        )
    require_same_models(faces.path, faces.fingerprint, [scorer])
    file, origin = None, scorer.origin(model=faces.fingerprint)
    left = np.arange(len(faces.names))
    if (folder / LIST).is_file():
        file = GalleryFile.open(folder, verify=verify)
        file.check_origin(origin, whose=str(faces.path))
        if faces.embeddings.shape[1] != file.width:
            raise UserError(
                f"the embeddings in {faces.path} are {faces.embeddings.shape[1]} wide, the "
                f"gallery's {file.width}: both must come from the same model"
            )
        if dtype not in (None, file.dtype):
            raise UserError(f"{folder} holds {file.dtype}, --dtype={dtype} was given: leave it out")
        file.tidy()
        left = left[~_already(file, faces)]
    names = [faces.names[row] for row in left.tolist()]
    replaced = 0
    if file is not None:
        replaced = len(file.check_new(names, replacing=replacing))
    if names:
        read = [stamp(faces.path), *settings, len(names), 0 if file is None else file.next]
        parts_of = folder_beside(folder, key_of(read))
        try:
            if file is None:
                file = GalleryFile.new(
                    folder,
                    origin=origin,
                    rule=scorer.rule,
                    constants=scorer.constants,
                    width=faces.embeddings.shape[1],
                    dtype=dtype or DTYPES[0],
                )
            parts = Parts(parts_of, len(left), _FACE_SLAB, name="faces-{number:06d}.npy")
            file = file.append(names, _blocks(parts, faces, left, scorer), replacing=replacing)
        except Exception:
            remove_empty(parts_of)
            raise
    remove_parts(folder)
    if file.wants_compacting():
        file = file.compact()
    count = len(names)
    already = len(faces.names) - count
    return Enrolled(count, replaced, already, len(file), time.perf_counter() - start)


def _already(file: GalleryFile, faces: Faces) -> np.ndarray:
    """bool [N]: which faces are enrolled with the very embedding that is given."""
    rows = file.find(faces.names)
    same = np.zeros(len(rows), bool)
    known = np.flatnonzero(rows >= 0)
    for start in range(0, len(known), _FACE_SLAB):
        some = known[start : start + _FACE_SLAB]
        given = faces.unit(some).embeddings.astype(file.dtype)
        same[some] = np.all(file.embeddings[rows[some]] == given, axis=1)
    return same


def _blocks(
    parts: Parts, faces: Faces, left: np.ndarray, scorer: Rescorer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit embeddings and the method's numbers of the faces to be enrolled."""

    def numbers(rows: range) -> np.ndarray:
        unit = faces.unit(left[rows.start : rows.stop])
        return scorer.terms(unit.embeddings, norms=unit.norms).values

    with progress_bar(
        total=len(left), desc="enrolment", unit="face", unit_scale=True, delay=2, leave=False
    ) as bar:
        for part, values in zip(parts, parts.values(numbers), strict=True):
            yield faces.unit(left[part.rows.start : part.rows.stop]).embeddings, values
            bar.update(len(values))
