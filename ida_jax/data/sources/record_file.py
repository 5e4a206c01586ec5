"""The records of a RecordIO file, found by its index.

    .rec    records: uint32 magic, uint32 (3 bits continuation flag, 29 bits length), payload,
            padded to 4 bytes; a payload that holds the magic at a word is cut there into parts
            (flags 1 first, 2 within, 3 last). The payload is uint32 flag, float32 label, uint64 id,
            uint64 id, then `flag` float32 labels in place of the label, then an image
    .idx    lines KEY<TAB>OFFSET

All numbers are little-endian. R records.
"""

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.tables.text import text_blocks

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
