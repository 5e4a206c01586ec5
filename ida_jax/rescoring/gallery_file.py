"""A gallery on disk: a folder of segments that are never changed, and one list of them.

    gallery.json               what the gallery is of, its segments, and what was deleted
    segment-000001.safetensors up to 131,072 faces: embeddings, the method's numbers, names
    deleted-000002.safetensors int64, the rows that were deleted

Each change writes new files beside the old ones and then replaces gallery.json, so that a kill
leaves the old gallery or the new one. Nothing that is enrolled is written again, until `compact`
pours what small or half deleted segments still hold into new ones: until then a deleted face is
found by no search, but is in its file. A reader has mapped what was there when it opened the
gallery. One process at a time may change it (`ida_jax.common.outputs.writing`).

G rows of the segments in their order, the deleted ones included; n new faces, D embedding, S
numbers a face.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import Damaged, UserError
from ida_jax.common.files import (
    complete,
    json_text,
    load_tensors,
    read_json,
    save_tensors,
    written_whole,
)
from ida_jax.common.parts import key_of
from ida_jax.rescoring.method_table import SETTINGS
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.tables.score_origin import ScoreOrigin, differences
from ida_jax.tables.text import name_fault

LIST = "gallery.json"
DTYPES = ("float32", "float16")
SEGMENT = 1 << 17

_KIND, _DELETED, _LAYOUT = "gallery_segment", "gallery_deleted", 1
# Of more bytes only a sample is looked at when a gallery is opened.
_LARGE = 256 << 20
_FILE = re.compile(r"(segment|deleted)-[0-9]{6,12}\.safetensors")
# What makes `compact` worth its while: a share of deleted rows, a number of small segments.
_MOST_DELETED, _MOST_SMALL = 0.25, 64


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


class Names(Sequence):
    """The names of a gallery's rows, decoded as they are asked for."""

    def __init__(self, segments: Sequence["_Segment"]) -> None:
        self._segments = segments
        self._ends = np.cumsum([len(segment.embeddings) for segment in segments])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> str:
        number = int(np.searchsorted(self._ends, range(len(self))[row], side="right"))
        segment = self._segments[number]
        return segment.name(row % len(self) - int(self._ends[number]) + len(segment.embeddings))


class _Segment(NamedTuple):
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


@dataclass(frozen=True, eq=False)
class GalleryFile:
    """A gallery's folder as it was when it was opened.

    Attributes:
      folder: where it is.
      origin: what scores of its faces are made with.
      rule: of `ida_jax.rescoring.terms`.
      constants: float32 [C], the rule's.
      width: D.
      dtype: of the embeddings, of `DTYPES`.
      segments: their files' names.
      arrays: what is in each.
      deleted: int64, ascending, the rows that were deleted.
      deleted_file: the name of theirs; "" where none was.
      next: the number of the next file.
    """

    folder: Path
    origin: ScoreOrigin
    rule: str
    constants: np.ndarray
    width: int
    dtype: str
    segments: tuple[str, ...]
    arrays: tuple[_Segment, ...]
    deleted: np.ndarray
    deleted_file: str
    next: int

    @classmethod
    def new(
        cls,
        folder: str | os.PathLike[str],
        *,
        origin: ScoreOrigin,
        rule: str,
        constants: np.ndarray,
        width: int,
        dtype: str,
    ) -> "GalleryFile":
        """A gallery without faces, which the first `append` writes.

        Args:
          folder: exists, and has no files but hidden ones.

        Raises:
          UserError: an unknown dtype; a folder with other files.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is unknown: choose one of {', '.join(DTYPES)}")
        folder = Path(folder)
        if (folder / LIST).exists():
            raise UserError(f"a gallery is in {folder} already: name another folder, or append")
        # What a first enrolment that was killed has left has no list, and goes.
        left = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        if not all(map(_FILE.fullmatch, left)):
            raise UserError(
                f"{folder} holds files, and none is {LIST}: name a gallery, or a new folder"
            )
        nothing, constants = np.empty(0, np.int64), np.asarray(constants, np.float32)
        return cls(folder, origin, rule, constants, width, dtype, (), (), nothing, "", 1)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = False) -> "GalleryFile":
        """The gallery as it is now.

        Args:
          verify: compare all of more than 256 MiB with its checksums, not a sample.

        Raises:
          UserError: no gallery there.
          Damaged: a file that is not what was written.
        """
        folder = Path(folder)
        if not (folder / LIST).is_file():
            what = "is no folder" if not folder.is_dir() else f"has no {LIST}"
            raise UserError(f"no gallery at {folder}: it {what}; make one by ida-jax enrol")
        while True:
            record = read_json(folder / LIST, what="gallery")
            try:
                return cls._of(folder, dict(record), verify=verify)
            except UserError:
                # Another process may have put a new list in place of this one and its files.
                if record == read_json(folder / LIST, what="gallery"):
                    raise

    @classmethod
    def _of(cls, folder: Path, record: dict[str, Any], *, verify: bool) -> "GalleryFile":
        path = folder / LIST
        if record.pop("checksum", None) != key_of(record, digits=32):
            raise Damaged(f"{path} is damaged: it is not what its checksum was taken of")
        with complete(path):
            if record["layout"] != _LAYOUT:
                raise ValueError(f"layout {record['layout']}")
            origin = ScoreOrigin.from_json(record["origin"])
            if unknown := set(origin.settings) - set(SETTINGS):
                raise ValueError(f"a setting {min(unknown)!r}")
            names = tuple(entry["file"] for entry in record["segments"])
            for name in filter(None, (*names, record["deleted"])):
                if not _FILE.fullmatch(name):
                    raise ValueError(f"{name[:40]!r} is no name of a gallery's file")
            paths = [folder / name for name in names]
            sizes = sum(path.stat().st_size for path in paths if path.is_file())
            sample = sizes > _LARGE
            arrays = tuple(
                _read(folder / entry["file"], entry["rows"], record, sample=sample, verify=verify)
                for entry in record["segments"]
            )
            deleted = np.empty(0, np.int64)
            if record["deleted"]:
                tensors, _ = load_tensors(folder / record["deleted"], kind=_DELETED)
                deleted = np.array(tensors["rows"])
                if deleted.dtype != np.int64 or deleted.ndim != 1:
                    raise ValueError(f"deleted rows are {deleted.dtype} {list(deleted.shape)}")
                rows = sum(len(segment.embeddings) for segment in arrays)
                if np.any(np.diff(deleted, prepend=-1, append=rows) <= 0):
                    raise ValueError(f"deleted rows that are not ascending within 0 … {rows - 1}")
            return cls(
                folder, origin, record["rule"], np.float32(record["constants"]), record["width"],
                record["dtype"], names, arrays, deleted, record["deleted"], record["next"],
            )  # fmt: skip

    @property
    def rows(self) -> int:
        """G."""
        return sum(len(segment.embeddings) for segment in self.arrays)

    def __len__(self) -> int:
        """The faces that are not deleted."""
        return self.rows - len(self.deleted)

    @property
    def embeddings(self) -> Joined:
        """[G, D], mapped."""
        nothing = np.empty((0, self.width), self.dtype)
        return Joined([segment.embeddings for segment in self.arrays] or [nothing])

    @property
    def terms(self) -> FaceTerms:
        """Of the G rows, in memory: 4 bytes of each number."""
        nothing = np.empty((0, RULES[self.rule].values), np.float32)
        values = np.concatenate([nothing, *(segment.values for segment in self.arrays)])
        return FaceTerms(self.rule, values, self.constants)

    @cached_property
    def enrolled(self) -> np.ndarray | None:
        """bool [G], false of deleted rows; None where there are none."""
        if not len(self.deleted):
            return None
        enrolled = np.ones(self.rows, bool)
        enrolled[self.deleted] = False
        return enrolled

    @property
    def names(self) -> Sequence[str]:
        """Of the G rows."""
        return Names(self.arrays) if self.arrays else ()

    def find(self, names: Sequence[str]) -> np.ndarray:
        """int64 [n]: the row of each name; −1 where no face has it."""
        keys, found = _keys(names), np.full(len(names), -1, np.int64)
        first = 0
        for segment in self.arrays:
            place = np.searchsorted(segment.name_keys, keys)
            known = place < len(segment.name_keys)
            known[known] = segment.name_keys[place[known]] == keys[known]
            for number in np.flatnonzero(known).tolist():
                for at in range(int(place[number]), len(segment.name_keys)):
                    if segment.name_keys[at] != keys[number]:
                        break
                    row = int(segment.name_rows[at])
                    alive = self.enrolled is None or self.enrolled[first + row]
                    if alive and segment.name(row) == names[number]:
                        found[number] = first + row
            first += len(segment.embeddings)
        return found

    def check_origin(self, origin: ScoreOrigin, *, whose: str = "these faces") -> None:
        """Refuses faces of another method, k, τ, model, anchors or artefact.

        Raises:
          UserError: it names what differs.
        """
        if found := differences(self.origin, origin):
            raise UserError(
                f"{self.folder} was made with {'; '.join(found)}: give {whose} the same, or make "
                "another gallery"
            )

    def check_new(self, names: Sequence[str], *, replacing: bool = False) -> np.ndarray:
        """The rows that faces of these names replace, int64, ascending.

        Raises:
          UserError: a name that no list can hold or that is there twice; one that is enrolled,
            unless it is to be replaced.
        """
        for number, name in enumerate(names):
            if fault := name_fault(name):
                raise UserError(f"the name of face {number} {fault}")
        if len(set(names)) < len(names):
            twice = sorted(names)
            name = next(one for one, other in pairwise(twice) if one == other)
            raise UserError(f"{name!r} is the name of two faces: names must be distinct")
        rows = self.find(names)
        known = np.flatnonzero(rows >= 0)
        if known.size and not replacing:
            others = f" and {known.size - 1:,} others are" if known.size > 1 else " is"
            raise UserError(
                f"{names[known[0]]!r}{others} enrolled in {self.folder} already, with another "
                "embedding: give --replace, or leave them out"
            )
        return np.sort(rows[known])

    def append(
        self,
        names: Sequence[str],
        blocks: Iterable[tuple[np.ndarray, np.ndarray]],
        *,
        replacing: bool = False,
    ) -> "GalleryFile":
        """Enrols faces, all of them or none, and returns the gallery with them.

        Args:
          names: n.
          blocks: unit embeddings and values of some of the faces, in the names' order.
          replacing: faces of the same names are deleted in the same moment.

        Raises:
          UserError: as `check_new`; a gallery that was changed since it was opened; no room.
        """
        replaced = self.check_new(names, replacing=replacing)

        def named() -> Iterator[_Block]:
            start = 0
            for embeddings, values in blocks:
                stop = start + len(embeddings)
                yield _Block(names[start:stop], embeddings, values)
                start = stop
            if start != len(names):
                raise ValueError(f"{start} faces for {len(names)} names")

        return self._write(chain(self.segments, named()), np.union1d(self.deleted, replaced))

    def delete(self, names: Sequence[str]) -> "GalleryFile":
        """Deletes faces by name: no search finds them, and `compact` removes their bytes.

        Raises:
          UserError: a name that is not enrolled: nothing is deleted then.
        """
        rows = self.find(names)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            others = f", nor are {missing.size - 1:,} others" if missing.size > 1 else ""
            raise UserError(
                f"{names[missing[0]]!r} is not enrolled in {self.folder}{others}: nothing was "
                "deleted"
            )
        return self._write(self.segments, np.union1d(self.deleted, rows))

    def compact(self) -> "GalleryFile":
        """Pours small and partly deleted segments into new ones, and removes their files.

        The faces' order stays, rows change. Where there is nothing to do nothing is written.
        """
        whole = [self._is_whole(number) for number in range(len(self.arrays))]
        if not len(self.deleted) and all(one or other for one, other in pairwise(whole)):
            return self

        def items() -> Iterator[str | _Block]:
            first = 0
            for name, segment, as_it_is in zip(self.segments, self.arrays, whole, strict=True):
                rows = np.arange(len(segment.embeddings))
                if self.enrolled is not None:
                    rows = rows[self.enrolled[first : first + len(rows)]]
                names = [segment.name(row) for row in rows.tolist()] if not as_it_is else []
                block = _Block(names, segment.embeddings[rows], segment.values[rows])
                yield name if as_it_is else block
                first += len(segment.embeddings)

        return self._write(items(), np.empty(0, np.int64))

    def wants_compacting(self) -> bool:
        """Whether a quarter of the rows are deleted, or more than 64 segments are small."""
        small = sum(len(segment.embeddings) < SEGMENT // 2 for segment in self.arrays)
        return len(self.deleted) > _MOST_DELETED * max(self.rows, 1) or small > _MOST_SMALL

    def _is_whole(self, number: int) -> bool:
        """Whether `compact` keeps a segment as it is: large, and nothing of it deleted."""
        first = sum(len(segment.embeddings) for segment in self.arrays[:number])
        rows = len(self.arrays[number].embeddings)
        before, after = np.searchsorted(self.deleted, [first, first + rows])
        return rows >= SEGMENT // 2 and before == after

    def _write(self, items: "Iterable[str | _Block]", deleted: np.ndarray) -> "GalleryFile":
        """Makes this the gallery: segments that are kept, by name, and blocks of faces.

        Args:
          deleted: its rows that are.
        """
        path = self.folder / LIST
        now = read_json(path, what="gallery").get("next", 1) if path.is_file() else 1
        if now != self.next:
            raise UserError(f"{self.folder} was changed since it was opened: open it again")
        own = dict(zip(self.segments, (len(each.embeddings) for each in self.arrays), strict=True))
        number, segments, origin = self.next, [], self.origin.to_json()
        for item in _filled(items):
            if isinstance(item, str):
                segments.append({"file": item, "rows": own[item]})
                continue
            name = f"segment-{number:06}.safetensors"
            _save(self.folder / name, item, self.dtype, key_of(origin))
            segments.append({"file": name, "rows": len(item.names)})
            number += 1
        deleted_file = self.deleted_file if np.array_equal(deleted, self.deleted) else ""
        if len(deleted) and not deleted_file:
            deleted_file = f"deleted-{number:06}.safetensors"
            save_tensors(self.folder / deleted_file, {"rows": deleted}, kind=_DELETED, metadata={})
            number += 1
        record = {
            "kind": "gallery",
            "layout": _LAYOUT,
            "origin": origin,
            "rule": self.rule,
            "constants": [float(constant) for constant in self.constants],
            "width": self.width,
            "dtype": self.dtype,
            "next": max(number, self.next + 1),
            "deleted": deleted_file,
            "segments": segments,
        }
        record["checksum"] = key_of(record, digits=32)
        with written_whole(path) as temporary:
            temporary.write_text(json_text(record), encoding="utf-8")
        self.tidy({LIST, deleted_file, *(entry["file"] for entry in segments)})
        return GalleryFile.open(self.folder)

    def tidy(self, named: Collection[str] | None = None) -> None:
        """Removes segments that no list names: those of a change that was killed.

        Args:
          named: the files that stay; those of this gallery if None.
        """
        named = {*self.segments, self.deleted_file} if named is None else named
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name.startswith(("segment-", "deleted-")) and path.name not in named:
                path.unlink(missing_ok=True)


class _Block(NamedTuple):
    """Faces to be written: names, unit embeddings [n, D], values float32 [n, S]."""

    names: Sequence[str]
    embeddings: np.ndarray
    values: np.ndarray


def _filled(items: Iterable[str | _Block]) -> Iterator[str | _Block]:
    """The items, and blocks that follow each other as blocks of `SEGMENT` faces."""
    held: list[_Block] = []

    def taken(rows: int) -> _Block:
        joined = _Block(
            [name for block in held for name in block.names],
            np.concatenate([block.embeddings for block in held]),
            np.concatenate([block.values for block in held]),
        )
        held[:] = [_Block(*(part[rows:] for part in joined))]
        return _Block(*(part[:rows] for part in joined))

    for item in chain(items, [None]):
        if isinstance(item, _Block):
            held += (_Block(*(part[rows] for part in item)) for rows in _cut(len(item.names)))
        count = sum(len(block.names) for block in held)
        while count >= SEGMENT or (count and not isinstance(item, _Block)):
            yield taken(SEGMENT)
            count = max(0, count - SEGMENT)
        if isinstance(item, str):
            held.clear()
            yield item


def _cut(count: int) -> list[slice]:
    return [slice(start, start + SEGMENT) for start in range(0, count, SEGMENT)]


def _save(path: Path, block: _Block, dtype: str, key: str) -> None:
    encoded, keys = [name.encode() for name in block.names], _keys(block.names)
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


def _read(path: Path, rows: int, record: dict[str, Any], *, sample: bool, verify: bool) -> _Segment:
    """A segment of the gallery of this list; Damaged or ValueError where it is not."""
    if not path.is_file():
        raise Damaged(f"{path.parent} is damaged: it lacks {path.name}; copy it again")
    tensors, metadata = load_tensors(
        path, kind=_KIND, unit_rows=("embeddings",), dtype=record["dtype"], sample=sample,
        verify=verify,
    )  # fmt: skip
    segment = _Segment(**tensors)
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


def _keys(names: Sequence[str]) -> np.ndarray:
    """int64 [n]: hashes of names."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)
