"""InsightFace's training sets: FOLDER/train.rec with train.idx, and property where it is there.

    train.rec    records, images by their keys and others without an image: uint32 magic, uint32 (3
                 bits continuation flag, 29 bits length), payload, padded to 4 bytes; a payload that
                 holds the magic at a word is cut there into parts (flags 1 first, 2 within, 3
                 last). The payload is uint32 flag, float32 label, uint64 id, uint64 id, then `flag`
                 float32 labels in place of the label, then an image
    train.idx    lines KEY<TAB>OFFSET
    property     CLASSES,HEIGHT,WIDTH

All numbers are little-endian.

Key 0 is a header without an image where its two labels are (first identity key, last + 1): images
then have the keys 1 … first − 1, and each identity's record the keys of its images (first,
last + 1). In files without it (im2rec's) every record is an image.

N faces, C identities, R records.
"""

import os
import re
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.common.processes import is_first
from ida_jax.common.progress import progress_bar
from ida_jax.data.dataset import EncodedFaces, FaceDataset, LazyImages
from ida_jax.data.sources.image_files import decode
from ida_jax.data.sources.jpeg import check_image
from ida_jax.tables.text import text_blocks, text_lines

_MAGIC = 0xCED7230A
_LENGTH_BITS = 29
_WHOLE, _FIRST, _WITHIN, _LAST = range(4)
_HEADER = struct.Struct("<IfQQ")
_BLOCK = 1 << 16
_BAD_LINE = re.compile(rb"(?m)^(?!\s*[0-9]{1,12}\t[0-9]{1,18}\s*$).*\S.*$")


class Records(NamedTuple):
    """The heads of R records, in the order in which they lie.

    Attributes:
      keys: int64 [R].
      offsets: int64 [R], bytes from the file's begin.
      flags: int64 [R], how many labels follow the header; at 0 the header's own counts.
      labels: float32 [R, 2], the first two labels, NaN where there is none.
      sizes: int64 [R], bytes of the image.
      notes: that the index lacks records, where it does.
    """

    keys: np.ndarray
    offsets: np.ndarray
    flags: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    notes: tuple[str, ...]


class RecordImages(Sequence[bytes]):
    """The images of N records in a memory-mapped file, each read when it is asked for."""

    def __init__(self, path: Path, keys: Sequence[int], offsets: np.ndarray) -> None:
        self._path, self._keys, self._offsets = path, keys, offsets
        self._words = _map(path)

    def __reduce__(self) -> tuple:
        # A memory map would pickle as the whole file.
        return RecordImages, (self._path, self._keys, self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, row: int) -> str:
        """A row's file, key and byte."""
        return f"{self._path}, key {self._keys[row]}, byte {self._offsets[row]}"

    def __getitem__(self, row: int) -> bytes:
        offset = int(self._offsets[row])
        payload, _ = _payload(self._path, self._words, offset)
        return payload[_image_start(self._path, payload, offset) :]


def read_records(path: Path, index: Path) -> Records:
    """Reads the head of every record that the index lists, and checks that records adjoin."""
    keys, offsets = _read_index(index)
    words = _map(path)
    size = os.path.getsize(path)
    outside = (offsets % 4 > 0) | (offsets // 4 + 2 > len(words))
    if outside.any():
        row = int(np.argmax(outside))
        raise UserError(
            f"{index}: key {keys[row]} is at byte {offsets[row]}, where {path} of {size} bytes "
            "cannot have a record: the file is truncated, or the index is another file's"
        )
    flags = np.zeros(len(keys), np.int64)
    labels = np.full((len(keys), 2), np.nan, np.float32)
    sizes, ends = np.zeros_like(flags), np.zeros_like(flags)
    blocks = range(0, len(keys), _BLOCK)
    for start in progress_bar(blocks, desc="index", unit="block", delay=2, leave=False):
        rows = slice(start, start + _BLOCK)
        at = offsets[rows] // 4
        head = words[at + 1]
        kind, length = head >> _LENGTH_BITS, (head & ((1 << _LENGTH_BITS) - 1)).astype(np.int64)
        ends[rows] = offsets[rows] + 8 + (length + 3) // 4 * 4
        whole = (words[at] == _MAGIC) & (kind == _WHOLE) & (length >= _HEADER.size)
        # The last record's padding may be missing.
        whole &= offsets[rows] + 8 + length <= size
        flags[rows] = np.where(whole, words[np.where(whole, at + 2, 0)], 0)
        sizes[rows] = length - _HEADER.size - 4 * flags[rows]
        whole &= sizes[rows] >= 0
        for column in (0, 1):
            has = whole & (flags[rows] > column)
            place = np.where(has, at + 8 + column, np.where(whole, at + 3, 0))
            value = words[place].view(np.float32)
            labels[rows, column] = np.where(has | whole & (column == 0), value, np.nan)
        for row in start + np.flatnonzero(~whole):
            payload, ends[row] = _payload(path, words, int(offsets[row]))
            image = _image_start(path, payload, int(offsets[row]))
            flag, label = _HEADER.unpack_from(payload)[:2]
            own = np.frombuffer(payload[_HEADER.size : image], "<f4")[:2] if flag else [label]
            flags[row], labels[row, : len(own)], sizes[row] = flag, own, len(payload) - image
    notes = _gap_notes(path, index, words, offsets, ends)
    return Records(keys, offsets, flags, labels, sizes, notes)


def _map(path: Path) -> np.ndarray:
    """The file's whole words, uint32."""
    words = os.path.getsize(path) // 4
    if words < 2:
        raise UserError(f"{path} has {os.path.getsize(path)} bytes: expected records")
    return np.memmap(path, "<u4", mode="r", shape=(words,))


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The keys and offsets, int64 [R], by offset."""
    content = b"".join(block.text for block in text_blocks(path))
    bad = _BAD_LINE.search(content)
    if bad is not None:
        line = content.count(b"\n", 0, bad.start()) + 1
        raise UserError(f"{path}:{line}: {bad[0][:60]!r} was found, expected KEY<TAB>OFFSET")
    if not content.strip():
        raise UserError(f"{path} is empty: expected lines KEY<TAB>OFFSET")
    table = np.fromstring(content, np.int64, sep=" ").reshape(-1, 2)
    for column, what in enumerate(("key", "offset")):
        values = table[:, column]
        order = np.argsort(values, kind="stable")
        twice = np.flatnonzero(values[order][1:] == values[order][:-1])
        if len(twice):
            value, first, second = values[order[twice[0]]], *order[twice[0] : twice[0] + 2] + 1
            raise UserError(
                f"{path} holds the {what} {value} twice (entries {first} and {second}): "
                "rebuild the index"
            )
    keys, offsets = table[order].T
    return np.ascontiguousarray(keys), np.ascontiguousarray(offsets)


def _gap_notes(
    path: Path, index: Path, words: np.ndarray, offsets: np.ndarray, ends: np.ndarray
) -> tuple[str, ...]:
    """Records lie one after the other: none may reach into the next, nor end before a record."""
    following = np.append(offsets[1:], 4 * len(words))
    # The last record's end lies beyond the last word where padding is missing.
    ends = np.minimum(ends, 4 * len(words))
    gaps = np.flatnonzero(following != ends)
    broken = (following[gaps] < ends[gaps]) | (
        words[np.minimum(ends[gaps] // 4, len(words) - 1)] != _MAGIC
    )
    if broken.any():
        row = gaps[np.argmax(broken)]
        raise UserError(
            f"{path}: the record at byte {offsets[row]} ends at byte {ends[row]}, where no record "
            f"begins (the index has the next one at byte {following[row]}): the file is damaged, "
            f"or {index} is another file's"
        )
    if len(gaps):
        at = ends[gaps[0]]
        return (f"{path} holds records that {index.name} lacks, the first at byte {at}",)
    return ()


def _payload(path: Path, words: np.ndarray, offset: int) -> tuple[bytes, int]:
    """A record's bytes, its parts joined, and the byte at which it ends."""
    parts, at, size = [], offset, os.path.getsize(path)
    while True:
        where = f"{path}, byte {at}"
        if at // 4 + 2 > len(words):
            raise UserError(f"{where}: the file ends within a record: copy it again")
        magic, head = (int(word) for word in words[at // 4 : at // 4 + 2])
        kind, length = head >> _LENGTH_BITS, head & ((1 << _LENGTH_BITS) - 1)
        if magic != _MAGIC:
            raise UserError(
                f"{where}: no record begins here (found {magic:08x}, expected {_MAGIC:08x}): the "
                "file is damaged, or the index is another file's"
            )
        if kind not in ((_WITHIN, _LAST) if parts else (_WHOLE, _FIRST)):
            raise UserError(f"{where}: a record's part is out of place (flag {kind})")
        if at + 8 + length > size:
            raise UserError(
                f"{where}: the file ends at byte {size}, within a record of {length} bytes: copy "
                "it again"
            )
        padded = words[at // 4 + 2 : at // 4 + 2 + (length + 3) // 4].tobytes()
        parts.append(padded[:length] if len(padded) >= length else _tail(path, at + 8, length))
        at += 8 + (length + 3) // 4 * 4
        if kind in (_WHOLE, _LAST):
            return struct.pack("<I", _MAGIC).join(parts), at


def _tail(path: Path, start: int, length: int) -> bytes:
    """The last record's bytes where they end within a word, which is not mapped."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _image_start(path: Path, payload: bytes, offset: int) -> int:
    """Where in a record's payload the image begins."""
    flag = _HEADER.unpack_from(payload)[0] if len(payload) >= _HEADER.size else 0
    start = _HEADER.size + 4 * flag
    if len(payload) < start:
        raise UserError(
            f"{path}, byte {offset}: a record of {len(payload)} bytes, expected {start} or more "
            f"for its header and {flag} labels"
        )
    return start


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
    """The records and their index; neither is read."""
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
