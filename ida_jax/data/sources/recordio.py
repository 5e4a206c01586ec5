"""InsightFace's training sets: FOLDER/train.rec with train.idx, and property where it is there.

    train.rec    images by their keys, and records without an image (`record_file`)
    property     CLASSES,HEIGHT,WIDTH

Key 0 is a header without an image where its two labels are (first identity key, last + 1): images
then have the keys 1 … first − 1, and each identity's record the keys of its images (first,
last + 1). In files without it (im2rec's) every record is an image.

N faces, C identities, R records.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.common.processes import is_first
from ida_jax.data.dataset import EncodedFaces, FaceDataset, LazyImages
from ida_jax.data.sources.image_files import decode
from ida_jax.data.sources.jpeg import check_image
from ida_jax.data.sources.record_file import RecordImages, Records, read_records
from ida_jax.tables.text import text_lines

# Keys in a record are float32, which holds every whole number up to this one.
_EXACT = 1 << 24


def load_recordio(folder: str | os.PathLike[str]) -> FaceDataset:
    """The same faces to train on, decoded when asked for, where they lie: nothing is copied.

    Rows, labels, names and pixels are those of the data set that `ida_jax.prepare` makes of the
    file (which encodes grey and CMYK JPEGs anew). Every start reads the head of each record.

    Raises:
      UserError: as `read_recordio`; on access, an image that cannot be decoded, by key and byte.
    """
    faces = read_recordio(folder)
    for note in faces.notes if is_first() else ():
        print(note)
    images = LazyImages(len(faces.images), partial(_image, faces.images))
    return FaceDataset(images, faces.labels, faces.identities)


def _image(images: RecordImages, row: int) -> np.ndarray:
    return decode(images[row], where=f"of {images.where(row)}")


def find_recordio(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The records and their index; neither is read.

    Raises:
      UserError: one of them is missing.
    """
    folder = Path(folder)
    path = folder if folder.suffix == ".rec" and folder.is_file() else folder / "train.rec"
    require_file(path, what="records")
    index = path.with_suffix(".idx")
    if not index.is_file():
        raise UserError(
            f"{path} has no {index.name} beside it, which says where each record begins: copy it "
            "from the release too, or make it with MXNet's tools/rec2idx.py"
        )
    return path, index


def read_recordio(folder: str | os.PathLike[str]) -> EncodedFaces:
    """The faces of FOLDER/train.rec, in the order of their keys.

    Every record's head is read at once; images are read when asked for. An identity's name is its
    label's text; labels are numbered 0 … C−1 in the labels' order. The notes report where
    `property`, the identities' records or records that the index lacks disagree with that.

    Args:
      folder: the folder, or a .rec file that has its .idx beside it.

    Raises:
      UserError: a file is missing, empty, truncated or damaged, the index disagrees with the
        records, or a label is not a whole number; file and byte, or line, are named.
    """
    path, index = find_recordio(folder)
    records = read_records(path, index)
    is_image, notes = _images(path, index, records)
    taken = np.flatnonzero(is_image)
    taken = taken[np.argsort(records.keys[taken], kind="stable")]
    if not len(taken):
        raise UserError(f"{path} holds no image: {len(records.keys)} records were found")
    found = records.labels[taken, 0]
    wrong = ~np.isfinite(found) | (found != np.round(found)) | (np.abs(found) >= _EXACT)
    if wrong.any():
        row = taken[np.argmax(wrong)]
        raise UserError(
            f"{path}, key {records.keys[row]}, byte {records.offsets[row]}: the label is "
            f"{records.labels[row, 0]}, expected a whole number below {_EXACT}"
        )
    names, labels = np.unique(found.astype(np.int64), return_inverse=True)
    keys: Sequence[int] = records.keys[taken]
    if keys[-1] - keys[0] == len(keys) - 1:
        keys = range(keys[0], keys[-1] + 1)  # as in every release; worker processes pickle less
    images = RecordImages(path, keys, records.offsets[taken])
    notes += _property_notes(path.parent / "property", len(names), images[0])
    return EncodedFaces(
        images,
        labels.astype(np.int32),
        tuple(map(str, names)),
        images.where,
        (*records.notes, *notes),
    )


def _images(path: Path, index: Path, records: Records) -> tuple[np.ndarray, list[str]]:
    """bool [R], which records are images, and notes of identities' records."""
    keys = records.keys
    header = np.flatnonzero((keys == 0) & (records.flags == 2) & (records.sizes == 0))
    if not len(header):
        return np.ones(len(keys), bool), []
    row = int(header[0])
    first, stop = records.labels[row]
    if not (1 <= first <= 2**40 and 1 <= stop <= 2**40 and first == round(first)):
        raise UserError(
            f"{path}, key 0, byte {records.offsets[row]}: the header's labels are {first} and "
            f"{stop}, expected the first identity's key and the last one's + 1"
        )
    first, stop = int(first), int(stop)
    if first > _EXACT:  # rounded by float32
        return (keys > 0) & (records.sizes > 0), []
    is_image = (keys > 0) & (keys < first)
    if np.count_nonzero(is_image) < first - 1:
        present = np.sort(keys[is_image])
        holes = np.flatnonzero(present != np.arange(1, len(present) + 1))
        missing = int(holes[0]) + 1 if len(holes) else len(present) + 1
        raise UserError(
            f"{index} lacks the key {missing}: {path} promises images of the keys 1 … {first - 1}; "
            "copy the index again"
        )
    return is_image, _identity_notes(path, records, is_image, first, stop)


def _identity_notes(
    path: Path, records: Records, is_image: np.ndarray, first: int, stop: int
) -> list[str]:
    """Whether each identity's record names exactly the images of one label."""
    own = np.flatnonzero((records.keys >= first) & (records.keys < stop))
    notes = []
    if stop > first and len(own) != stop - first:
        notes.append(f"{path} promises {stop - first} identity records, {len(own)} were found")
    taken = np.flatnonzero(is_image)
    label = np.zeros(first + 1, np.float32)
    label[records.keys[taken]] = records.labels[taken, 0]
    changes = np.cumsum(label[1:] != label[:-1])
    bounds = records.labels[own]
    with np.errstate(invalid="ignore"):
        sound = (bounds[:, 0] >= 1) & (bounds[:, 1] > bounds[:, 0]) & (bounds[:, 1] <= first)
    low, high = np.where(sound[:, None], bounds, [1, 2]).astype(np.int64).T
    sound &= changes[low - 1] == changes[high - 2] if first > 1 else False
    # An identity without images keeps a record of an empty range.
    sound |= bounds[:, 0] == bounds[:, 1]
    if not sound.all():
        row = own[np.argmin(sound)]
        notes.append(
            f"{np.count_nonzero(~sound)} identity records name other images than one label's, the "
            f"first at byte {records.offsets[row]} (key {records.keys[row]}); labels are the "
            "images' own"
        )
    return notes


def _property_notes(path: Path, identities: int, first: bytes) -> list[str]:
    if not path.is_file():
        return []
    text = "\n".join(text_lines(path, what="property"))
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 3 or not all(f.isascii() and f.isdecimal() and len(f) < 10 for f in fields):
        raise UserError(f"{path}:1: {text[:60]!r} was found, expected CLASSES,HEIGHT,WIDTH")
    classes, height, width = map(int, fields)
    notes = []
    if classes != identities:
        notes.append(f"{path} promises {classes} identities, {identities} were found")
    if height == width:
        problem = check_image(first, size=height).problem
        if problem is not None:
            notes.append(f"{path} promises images of {height}×{width}, but the first one {problem}")
    return notes
