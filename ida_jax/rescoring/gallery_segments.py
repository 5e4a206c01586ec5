"""The segments of a gallery's folder: safetensors files of some faces, never changed once written.

G rows of all segments, n of one, D embedding, S numbers a face.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import Damaged
from ida_jax.common.files import load_tensors, save_tensors
from ida_jax.common.parts import key_of
from ida_jax.rescoring.terms import RULES

FILE = re.compile(r"(segment|deleted)-[0-9]{6,12}\.safetensors")

_KIND = "gallery_segment"


class Joined:
    """Arrays one after the other, read as one: slices of rows; a slice within one is a view."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = tuple(arrays)
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._ends[-1]), *arrays[0].shape[1:])
        self.dtype = arrays[0].dtype
        self.nbytes = sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows by a slice without a step, or int [n] of any order."""
        if not isinstance(rows, slice):
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
            segment = np.searchsorted(self._ends, rows, side="right")
            for number in np.unique(segment):
                own, array = segment == number, self._arrays[number]
                out[own] = array[rows[own] - (self._ends[number] - len(array))]
            return out
        start, stop, _ = rows.indices(len(self))
        pieces, first = [], int(np.searchsorted(self._ends, start, side="right"))
        for end, array in zip(self._ends[first:].tolist(), self._arrays[first:], strict=True):
            before = end - len(array)
            if before >= stop:
                break
            pieces.append(array[max(start - before, 0) : stop - before])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *pieces])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def on_host(array: Any) -> np.ndarray | Joined:
    """An array whose rows are taken: as NumPy's, but a `Joined`, of which only these are read."""
    return array if isinstance(array, Joined) else np.asarray(array)


class Names(Sequence):
    """The names of a gallery's rows, decoded as they are asked for."""

    def __init__(self, segments: Sequence["Segment"]) -> None:
        self._segments = segments
        self._ends = np.cumsum([len(segment.embeddings) for segment in segments])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> str:
        number = int(np.searchsorted(self._ends, range(len(self))[row], side="right"))
        segment = self._segments[number]
        return segment.name(row % len(self) - int(self._ends[number]) + len(segment.embeddings))


class Segment(NamedTuple):
    """A segment's arrays, mapped.

    Attributes:
      embeddings: float32 or float16 [n, D], unit rows.
      values: float32 [n, S].
      names: uint8, in UTF-8 one after the other.
      name_ends: int64 [n], where each ends.
      name_keys: int64 [n], ascending, hashes of the names.
      name_rows: int64 [n], their rows in the segment.
    """

    embeddings: np.ndarray
    values: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    name_keys: np.ndarray
    name_rows: np.ndarray

    def name(self, row: int) -> str:
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : int(self.name_ends[row])].tobytes().decode(errors="replace")


class Block(NamedTuple):
    """Faces to be written: names, unit embeddings [n, D], values float32 [n, S]."""

    names: Sequence[str]
    embeddings: np.ndarray
    values: np.ndarray


def filled(items: Iterable[str | Block], size: int) -> Iterator[str | Block]:
    """The items, and blocks that follow each other as blocks of `size` faces."""
    held: list[Block] = []

    def taken(rows: int) -> Block:
        joined = Block(
            [name for block in held for name in block.names],
            np.concatenate([block.embeddings for block in held]),
            np.concatenate([block.values for block in held]),
        )
        held[:] = [Block(*(part[rows:] for part in joined))]
        return Block(*(part[:rows] for part in joined))

    for item in chain(items, [None]):
        if isinstance(item, Block):
            held += (Block(*(part[rows] for part in item)) for rows in _cut(len(item.names), size))
        count = sum(len(block.names) for block in held)
        while count >= size or (count and not isinstance(item, Block)):
            yield taken(size)
            count = max(0, count - size)
        if isinstance(item, str):
            held.clear()
            yield item


def _cut(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def save_segment(path: Path, block: Block, dtype: str, key: str) -> None:
    """Writes a segment of the gallery with this key, whole or not at all."""
    encoded, keys = [name.encode() for name in block.names], name_keys(block.names)
    order = np.argsort(keys, kind="stable")
    tensors = {
        "embeddings": np.asarray(block.embeddings, dtype),
        "values": np.asarray(block.values, np.float32),
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "name_ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        "name_keys": keys[order],
        "name_rows": order.astype(np.int64),
    }
    save_tensors(path, tensors, kind=_KIND, metadata={"gallery": key})


def read_segment(
    path: Path, rows: int, record: dict[str, Any], *, sample: bool, verify: bool
) -> Segment:
    """A segment of the gallery of this list; Damaged or ValueError where it is not."""
    if not path.is_file():
        raise Damaged(f"{path.parent} is damaged: it lacks {path.name}; copy it again")
    tensors, metadata = load_tensors(
        path, kind=_KIND, unit_rows=("embeddings",), dtype=record["dtype"], sample=sample,
        verify=verify,
    )  # fmt: skip
    segment = Segment(**tensors)
    width, values = record["width"], RULES[record["rule"]].values
    expected = {
        "embeddings": (np.dtype(record["dtype"]), (rows, width)),
        "values": (np.dtype(np.float32), (rows, values)),
        **{name: (np.dtype(np.int64), (rows,)) for name in ("name_ends", "name_keys", "name_rows")},
    }
    for name, form in expected.items():
        array = getattr(segment, name)
        if (array.dtype, array.shape) != form:
            raise ValueError(f"{path.name}: {name} is {array.dtype} {list(array.shape)}")
    if metadata.get("gallery") != key_of(record["origin"]):
        raise ValueError(f"{path.name} is of another gallery")
    return segment


def name_keys(names: Sequence[str]) -> np.ndarray:
    """int64 [n]: hashes of names."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)
