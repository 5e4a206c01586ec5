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

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

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
from ida_jax.rescoring.gallery_segments import (
    FILE,
    Block,
    Joined,
    Names,
    Segment,
    filled,
    name_keys,
    read_segment,
    save_segment,
)
from ida_jax.rescoring.method_table import SETTINGS
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.tables.score_origin import ScoreOrigin, differences
from ida_jax.tables.text import name_fault

LIST = "gallery.json"
DTYPES = ("float32", "float16")
SEGMENT = 1 << 17

_DELETED, _LAYOUT = "gallery_deleted", 1
# Of more bytes only a sample is looked at when a gallery is opened.
_LARGE = 256 << 20
# What makes `compact` worth its while: a share of deleted rows, a number of small segments.
_MOST_DELETED, _MOST_SMALL = 0.25, 64


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
    arrays: tuple[Segment, ...]
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
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is unknown: choose one of {', '.join(DTYPES)}")
        folder = Path(folder)
        if (folder / LIST).exists():
            raise UserError(f"a gallery is in {folder} already: name another folder, or append")
        # What a first enrolment that was killed has left has no list, and goes.
        left = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        if not all(map(FILE.fullmatch, left)):
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
            what = "is not a folder" if not folder.is_dir() else f"has no {LIST}"
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
                if not FILE.fullmatch(name):
                    raise ValueError(f"{name[:40]!r} is not the name of a gallery's file")
            paths = [folder / name for name in names]
            sizes = sum(path.stat().st_size for path in paths if path.is_file())
            sample = sizes > _LARGE
            arrays = tuple(
                read_segment(
                    folder / entry["file"], entry["rows"], record, sample=sample, verify=verify
                )
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
        keys, found = name_keys(names), np.full(len(names), -1, np.int64)
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
        """Refuses faces of another method, k, τ, model, anchors or artefact."""
        if found := differences(self.origin, origin):
            raise UserError(
                f"{self.folder} was made with {'; '.join(found)}: give {whose} the same, or make "
                "another gallery"
            )

    def check_new(self, names: Sequence[str], *, replacing: bool = False) -> np.ndarray:
        """The rows that faces of these names replace, int64, ascending."""
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

        def named() -> Iterator[Block]:
            start = 0
            for embeddings, values in blocks:
                stop = start + len(embeddings)
                yield Block(names[start:stop], embeddings, values)
                start = stop
            if start != len(names):
                raise ValueError(f"{start} faces for {len(names)} names")

        return self._write(chain(self.segments, named()), np.union1d(self.deleted, replaced))

    def delete(self, names: Sequence[str]) -> "GalleryFile":
        """Deletes faces by name: no search finds them, and `compact` removes their bytes."""
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

        def items() -> Iterator[str | Block]:
            first = 0
            for name, segment, as_it_is in zip(self.segments, self.arrays, whole, strict=True):
                rows = np.arange(len(segment.embeddings))
                if as_it_is:
                    yield name
                else:
                    if self.enrolled is not None:
                        rows = rows[self.enrolled[first : first + len(rows)]]
                    names = [segment.name(row) for row in rows.tolist()]
                    yield Block(names, segment.embeddings[rows], segment.values[rows])
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

    def _write(self, items: "Iterable[str | Block]", deleted: np.ndarray) -> "GalleryFile":
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
        for item in filled(items, SEGMENT):
            if isinstance(item, str):
                segments.append({"file": item, "rows": own[item]})
                continue
            name = f"segment-{number:06}.safetensors"
            save_segment(self.folder / name, item, self.dtype, key_of(origin))
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
