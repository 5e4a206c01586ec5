"""Enrolment from files: embeddings into a gallery, resumable, all of them or none.

The faces' numbers, which need the search in the anchors, are made in parts beside the gallery: the
same command continues where it was killed. The gallery is changed at the end, in one moment.

N faces, D embedding.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.parts import Parts, folder_beside, key_of, remove_empty, remove_parts, stamp
from ida_jax.common.progress import progress_bar
from ida_jax.common.validation import UnitRows
from ida_jax.rescoring.batch import slab_terms
from ida_jax.rescoring.face_files import Bad, Faces
from ida_jax.rescoring.gallery_file import DTYPES, LIST, GalleryFile
from ida_jax.rescoring.methods import require_same_models
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.shared_people import people_among, shared_people, shared_warning
from ida_jax.rescoring.terms import RULES
from ida_jax.tables.score_origin import Shared

_FACE_SLAB = 4096
_LAYOUT = "numbers, nearest"  # of a part's columns
_OTHERS = (
    "make an anchor set of other people, and the gallery anew (ida-jax anchors check --against "
    "tells who they are)"
)


class Enrolled(NamedTuple):
    """What an enrolment did.

    Attributes:
      enrolled: new faces.
      replaced: how many of them took the place of another of their name.
      already: faces that were enrolled with the same embedding before.
      skipped: the names of faces that are zero, NaN or infinite, and were left out.
      images: how many such images were left out of templates.
      faces: of the gallery now.
      shared: who of the new faces may be among the anchors; None where nothing was searched.
      seconds: of the whole job.
    """

    enrolled: int
    replaced: int
    already: int
    skipped: list[str]
    images: int
    faces: int
    shared: Shared | None
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
    end nobody saw can be run again. Warns on standard error where the new faces' people seem to be
    among the anchors.

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
        bad rows, named, unless they are skipped; nothing but bad rows for a new gallery.
    """
    start = time.perf_counter()
    if faces.names is None:
        raise UserError(
            f"{faces.path} has no names, by which faces are enrolled: give --names=FILE, "
            "one per line"
        )
    require_same_models(faces.path, faces.fingerprint, [scorer])
    file, origin = None, scorer.origin(model=faces.fingerprint)
    bad = faces.bad() if faces.skip_bad else Bad(np.zeros(len(faces), bool), 0)
    good = left = np.flatnonzero(~bad.faces)
    if (folder / LIST).is_file():
        file = GalleryFile.open(folder, verify=verify)
        file.check_origin(origin, whose=str(faces.path))
        if faces.width != file.width:
            raise UserError(
                f"the embeddings in {faces.path} are {faces.width} wide, the gallery's "
                f"{file.width}: both must come from the same model"
            )
        if dtype not in (None, file.dtype):
            raise UserError(f"{folder} holds {file.dtype}, --dtype={dtype} was given: leave it out")
        file.tidy()
        left = left[~_already(file, faces, left)]
    elif not len(left):
        raise UserError(f"{faces.path}: all faces are zero, NaN or infinite: none can be enrolled")
    names = [faces.names[row] for row in left.tolist()]
    replaced, nearest = 0, [np.empty(0, np.float32)]
    if file is not None:
        replaced = len(file.check_new(names, replacing=replacing))
    if names:
        read = [stamp(faces.path), *settings, len(names), 0 if file is None else file.next, _LAYOUT]
        parts_of = folder_beside(folder, key_of(read))
        try:
            if file is None:
                file = GalleryFile.new(
                    folder,
                    origin=origin,
                    rule=scorer.rule,
                    constants=scorer.constants,
                    width=faces.width,
                    dtype=dtype or DTYPES[0],
                )
            parts = Parts(parts_of, len(left), _FACE_SLAB, name="faces-{number:06d}.npy")
            blocks = _blocks(parts, faces, left, scorer, nearest)
            file = file.append(names, blocks, replacing=replacing)
        except Exception:
            remove_empty(parts_of)
            raise
    remove_parts(folder)
    if file.wants_compacting():
        file = file.compact()
    return Enrolled(
        len(names),
        replaced,
        len(good) - len(names),
        [faces.names[row] for row in np.flatnonzero(bad.faces).tolist()],
        bad.images,
        len(file),
        _shared(faces, names, np.concatenate(nearest), scorer),
        time.perf_counter() - start,
    )


def _shared(
    faces: Faces, names: Sequence[str], nearest: np.ndarray, scorer: Rescorer
) -> Shared | None:
    """Which of the new faces' people may be among the anchors; a warning where many seem to be."""
    if not len(nearest):
        return None
    known = people_among(names, scorer.anchors)
    shared = shared_people(nearest, scorer.anchors, labels=None, known=known)
    if warning := shared_warning(shared, scorer.anchors, advice=_OTHERS):
        print(f"warning: {faces.path}: {warning}", file=sys.stderr)
    return shared


def _already(file: GalleryFile, faces: Faces, good: np.ndarray) -> np.ndarray:
    """bool: which of the good faces are enrolled with the very embedding that is given."""
    rows = file.find([faces.names[row] for row in good.tolist()])
    same = np.zeros(len(rows), bool)
    known = np.flatnonzero(rows >= 0)
    for start in range(0, len(known), _FACE_SLAB):
        some = known[start : start + _FACE_SLAB]
        given = faces.unit(good[some]).embeddings.astype(file.dtype)
        same[some] = np.all(file.embeddings[rows[some]] == given, axis=1)
    return same


def _blocks(
    parts: Parts, faces: Faces, left: np.ndarray, scorer: Rescorer, nearest: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit embeddings and the method's numbers of the faces to be enrolled.

    Args:
      nearest: takes their cosines to the nearest anchor, where anchors are searched.
    """
    count = RULES[scorer.rule].values

    @lru_cache(maxsize=1)  # a part that is made is read once
    def unit(rows: range) -> UnitRows:
        return faces.unit(left[rows.start : rows.stop])

    with progress_bar(
        total=len(left), desc="enrolment", unit="face", unit_scale=True, delay=2, leave=False
    ) as bar:
        made = parts.values(lambda rows: slab_terms(scorer, *unit(rows)))
        for part, values in zip(parts, made, strict=True):
            if scorer.neighbours:
                nearest.append(values[:, -1])
            yield unit(part.rows).embeddings, values[:, :count]
            bar.update(len(values))
