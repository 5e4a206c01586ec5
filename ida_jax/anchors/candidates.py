"""Faces that may become anchors, by their numbers: a generator's or a folder's; and embeddings.

N faces, H height, W width, D embedding.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.anchors.sources import find_images
from ida_jax.common.errors import UserError
from ida_jax.common.parts import Parts, cut, key_of
from ida_jax.common.validation import unit_embeddings, unit_rows
from ida_jax.data.dataset import LazyImages, image_subset
from ida_jax.data.degrade import Degradation, copies_of, degraded_rows
from ida_jax.data.sources.image_files import decode, read_image

if TYPE_CHECKING:
    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.artefacts.generator import FaceGenerator

# Faces embedded and judged at once: the most that a kill costs. Whole batches of the generator and
# of the model, so that all chunks have one compiled shape.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class CandidateFaces:
    """Faces by number, always the same face under the same number.

    Attributes:
      draw: (first, count) → crops of the faces first … first + count − 1, uint8 [H, W, 3] each.
      available: the number of faces; None if unlimited.
      image_size: H and W.
      provenance: where they come from, JSON-able; it includes everything that they depend on.
      names: of files, where they are files.
      unreadable: numbers of drawn faces that could not be decoded, and are black.
      hidden: the entries beside the files that were passed over as hidden.
    """

    draw: Callable[[int, int], Sequence[np.ndarray]]
    available: int | None
    image_size: int
    provenance: dict[str, Any]
    names: tuple[str, ...] = ()
    unreadable: set[int] = field(default_factory=set)
    hidden: tuple[str, ...] = ()


def generated_candidates(
    generator: "FaceGenerator", *, seed: int = 0, truncation: float = 1.0
) -> CandidateFaces:
    """A generator's faces, in unlimited number.

    Args:
      truncation: ψ in 0 < ψ ≤ 1. Styles are drawn in to their mean, w̄ + ψ·(w − w̄), which makes
        faces cleaner and more alike (Karras et al. 2019, appendix B).
    """
    if not 0 < truncation <= 1:
        raise UserError(f"the truncation is {truncation:g}: expected 0 < ψ ≤ 1, 1 for none")

    def draw(first: int, count: int) -> np.ndarray:
        return generator.faces(first, count, seed=seed, truncation=truncation)

    provenance = {
        "generator": generator.fingerprint,
        "trained": generator.provenance,
        "resolution": generator.options.get("resolution"),
        "image_size": generator.image_size,
        "seed": seed,
        "truncation": truncation,
    }
    return CandidateFaces(draw, None, generator.image_size, provenance)


def folder_candidates(
    folder: str | os.PathLike[str], *, image_size: int, skip_bad: bool = False
) -> CandidateFaces:
    """The crops of an external generator, the images in one folder, by name.

    Args:
      folder: FOLDER/IMAGE.
      image_size: what the model takes; an image of another size is refused when it is drawn.
      skip_bad: an image that cannot be decoded is black, and noted as unreadable, instead of
        ending the run.
    """
    images = find_images(folder)
    if images.people:
        raise UserError(
            f"{folder} holds folders, {images.people[0]} the first: expected a generator's images "
            "in one folder; real people's crops become anchors with `build --images`"
        )
    crops = file_candidates(images.files, folder, image_size=image_size, skip_bad=skip_bad)
    return replace(crops, hidden=images.hidden)


def file_candidates(
    files: Sequence[Path],
    folder: str | os.PathLike[str],
    *,
    image_size: int,
    skip_bad: bool | None = None,
) -> CandidateFaces:
    """Image files in their order.

    Args:
      folder: named as their source in the provenance.
      image_size: H and W of each.
      skip_bad: as in `folder_candidates`; None where that is not offered.
    """
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    digest = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        digest.update(f"{name}\0".encode())
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
    unreadable: set[int] = set()

    def read(number: int) -> np.ndarray:
        file = files[number]
        try:
            image = decode(read_image(file), where=str(file))
        except UserError as error:
            if skip_bad is None:
                raise
            if not skip_bad:
                raise UserError(f"{error}; --skip_bad continues without it") from error
            unreadable.add(number)
            return np.zeros((image_size, image_size, 3), np.uint8)
        if image.shape != (image_size, image_size, 3):
            # Never skipped: as a rule all images then have the wrong size.
            raise UserError(
                f"image {file} is {image.shape[1]}×{image.shape[0]} pixels, the model takes "
                f"{image_size}×{image_size}: align and crop the images as the model's faces first"
            )
        return image

    provenance = {
        "images": str(folder),
        "files": len(files),
        "sha256": digest.hexdigest(),
        "skip_bad": bool(skip_bad),
    }
    return CandidateFaces(
        lambda first, count: LazyImages(count, lambda index: read(first + index)),
        len(files),
        image_size,
        provenance,
        names,
        unreadable,
    )


def embedded_chunks(
    candidates: CandidateFaces,
    model: "FaceModel",
    *,
    stop: int,
    flip: bool = False,
    parts: Path | None = None,
) -> Iterator[np.ndarray]:
    """Unit embeddings of the first `stop` candidates, by chunks: float32 [≤ 256, D] each.

    A row is NaN where a candidate could not be decoded or the model gave zero, NaN or infinity.

    Args:
      flip: adds the mirrored face's embedding.
      parts: a folder in which chunks are kept, in a folder named after all that they depend on; a
        chunk that exists is not computed again. The caller removes it.
    """
    size = model.preprocessing.image_size
    if candidates.image_size != size:
        raise UserError(
            f"the generator makes crops of {candidates.image_size}×{candidates.image_size} pixels, "
            f"the model takes {size}×{size}: take a generator trained on crops of that size"
        )

    def embed(rows: range) -> np.ndarray:
        raw = model.raw_embeddings(candidates.draw(rows.start, len(rows)), flip=flip)
        raw[[number - rows.start for number in candidates.unreadable if number in rows]] = np.nan
        return unit_rows(raw, skip_bad=True).embeddings

    # Whole chunks: what a part holds does not depend on where this call ends.
    whole, end = -(-stop // _CHUNK) * _CHUNK, stop
    if candidates.available is not None:
        whole, end = min(whole, candidates.available), min(stop, candidates.available)
    if parts is None:
        chunks = map(embed, cut(whole, _CHUNK))
    else:
        # Named by what embeddings depend on, to the last bit.
        described = [candidates.provenance, model.fingerprint, flip, _CHUNK]
        folder = parts / key_of(described, digits=16)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write in {parts.parent}: {error.strerror}") from error
        chunks = Parts(folder, whole, _CHUNK).values(embed)
    for first, faces in zip(range(0, whole, _CHUNK), chunks, strict=True):
        yield faces[: end - first]


def degraded_copies(
    candidates: CandidateFaces,
    numbers: np.ndarray,
    model: "FaceModel",
    how: Degradation,
    *,
    flip: bool = False,
    parts: Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of degraded copies of some of the candidates `numbers`, float32 [C, D].

    Args:
      numbers: int64 [A], candidates, ascending.
      how: chooses among them and makes the copies.
      flip, parts: as in `embedded_chunks`.

    Returns:
      The embeddings, and int64 [C], the row in `numbers` of each one's face.
    """
    available = sys.maxsize if candidates.available is None else candidates.available
    cuts = cut(int(numbers[-1]) + 1, _CHUNK)
    ends = np.searchsorted(numbers, [rows.stop for rows in cuts])
    chunks = np.split(np.arange(len(numbers)), ends[:-1])
    chosen = [rows[degraded_rows(how, numbers[rows])] for rows in chunks]

    def embed(number: int) -> np.ndarray:
        start, mine = cuts[number].start, numbers[chosen[number]]
        if not mine.size:
            return np.empty((0, model.width), np.float32)
        # Whole chunks, as they were drawn before: one compiled shape.
        faces = candidates.draw(start, min(_CHUNK, available - start))
        copies = copies_of(image_subset(faces, mine - start), how, numbers=mine)
        return unit_embeddings(model.raw_embeddings(copies, flip=flip), what="degraded copies")

    of = np.concatenate([np.tile(rows, how.copies) for rows in chosen])
    jobs = range(len(chunks))
    if parts is None:
        return np.concatenate([embed(number) for number in jobs]), of
    described = [candidates.provenance, model.fingerprint, flip, _CHUNK, how, numbers.tolist()]
    folder = parts / key_of(described, digits=16)
    folder.mkdir(parents=True, exist_ok=True)
    embedded = Parts(folder, len(chunks), 1).values(lambda rows: embed(rows.start))
    return np.concatenate(list(embedded)), of
