"""Work in parts that survives a kill: a file a part, in one folder.

A part is written whole, and an existing one is not made again: the same command continues where it
was killed. How N rows are cut depends on N and the size alone, so that any number of processes
makes the same parts; shards (`ida_jax.common.shards`) are shares of them. What parts depend on is
in their folder's name, or stored inside them and compared when they are read, so that another job's
parts are never used.

N rows.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import Damaged, UserError
from ida_jax.common.files import written_whole

# What stands between an array and its file's checksum.
_SEAL = b"\0ida sum"
_DIGITS = 16


class Part(NamedTuple):
    """Some of the rows, and the file of their values."""

    rows: range
    path: Path


class Shard(NamedTuple):
    """One of `count` shares of a job's parts, by its number from 0.

    A share is a run of parts, for what lies together in a list often needs the same faces.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def share(self, parts: int) -> slice:
        """Which of so many parts are its own."""
        return slice(*(parts * end // self.count for end in (self.number, self.number + 1)))


def write_npy(path: Path, values: np.ndarray) -> None:
    """Writes one array as .npy, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def write_part(path: Path, values: np.ndarray) -> None:
    """As `write_npy`, with a checksum behind the array, where NumPy does not look."""
    with written_whole(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        seal(temporary)


def read_part(path: Path) -> np.ndarray:
    """The array of a part; `Damaged` where it is not what was written."""
    try:
        if is_sealed(path):
            return np.load(path, allow_pickle=False)
        with path.open("rb") as file:  # an older part, which ends with its array
            values = np.load(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("another checksum")
    except Exception as error:  # a damaged header makes NumPy raise whatever it may
        raise Damaged(
            f"{path} is damaged (torn, or changed since): delete it and run the same command again"
        ) from error
    return values


def seal(path: Path) -> None:
    """Appends a file's checksum to it; a reader of .npy does not look behind the array."""
    digest = _digest(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(_SEAL + digest)


def is_sealed(path: Path) -> bool:
    """Whether a file is there, and is what `seal` has sealed."""
    if not path.is_file():
        return False
    end = path.stat().st_size - len(_SEAL) - _DIGITS
    if end < 0:
        return False
    with path.open("rb") as file:
        file.seek(end)
        return file.read() == _SEAL + _digest(path, end)


def _digest(path: Path, end: int) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGITS)
    with path.open("rb") as file:
        while end and (block := file.read(min(end, 1 << 20))):
            digest.update(block)
            end -= len(block)
    return digest.digest()


@dataclass(frozen=True)
class Parts:
    """The parts of one job on N rows, in the rows' order.

    Attributes:
      folder: exists, and is this job's alone, or holds files whose `read` refuses another job's.
      rows: N; 0 has no parts.
      size: rows a part, the most that a kill costs; the last part may be smaller.
      name: of a part's file, by its `start` row or its `number`.
      done: whether a part need not be made.
      write: writes a part's values, whole or not at all.
      read: reads them; `Damaged`, from it or from `done`, has a part made again.
    """

    folder: Path
    rows: int
    size: int
    _: KW_ONLY
    name: str = "from-{start:09}.npy"
    done: Callable[[Path], bool] = Path.is_file
    write: Callable[[Path, np.ndarray], None] = write_part
    read: Callable[[Path], np.ndarray] = read_part

    def __iter__(self) -> Iterator[Part]:
        for number, rows in enumerate(cut(self.rows, self.size)):
            yield Part(rows, self.folder / self.name.format(start=rows.start, number=number))

    def share(self, shard: Shard | None = None) -> list[Part]:
        """A shard's parts; all if None."""
        parts = list(self)
        return parts if shard is None else parts[shard.share(len(parts))]

    def left(self, shard: Shard | None = None) -> list[Part]:
        """The parts of a share that are still to be made; damaged ones are named."""
        return [part for part in self.share(shard) if not self.has(part)]

    def has(self, part: Part) -> bool:
        """Whether a part is there and whole; a damaged one is named, and removed."""
        return self._found(part.path) is not None

    def values(self, make: Callable[[range], np.ndarray] | None = None) -> Iterator[np.ndarray]:
        """The parts' values, in order; `make` gives those of the rows of a missing part."""
        for rows, path in self:
            if make is None:
                yield self.read(path)
                continue
            found = self._found(path)
            if found is None:
                self.write(path, make(rows))
                found = self.read(path)
            yield found

    def _found(self, path: Path) -> np.ndarray | None:
        """What a part holds; None where it is to be made, again where it was damaged."""
        try:
            return self.read(path) if self.done(path) else None
        except Damaged as error:
            reason = str(error).partition(": delete")[0]
            print(f"{reason}: it is made again", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None

    def whole(self, make: Callable[[range], np.ndarray], width: tuple[int, ...] = ()) -> np.ndarray:
        """Float32 [N, *width] of all parts; only one of them is in memory twice."""
        whole = np.empty((self.rows, *width), np.float32)
        for part, values in zip(self, self.values(make), strict=True):
            whole[part.rows.start : part.rows.stop] = values
        return whole


def cut(rows: int, size: int) -> list[range]:
    """0 … N − 1 in ranges of `size`, the last of which may be smaller."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def key_of(described: Any, *, digits: int = 12) -> str:
    """Hex digits of a SHA-256 of all that a job's parts depend on, JSON-able, or else as text."""
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def stamp(path: Path) -> list[str | int]:
    """A file's place, size and time of change, which differ once it has been changed.

    Of a folder, those of all files in it.
    """
    found: list[str | int] = [os.path.realpath(path)]
    inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    for file in inside or [path]:
        stat = file.stat()
        found += [str(file.relative_to(path))] * bool(inside) + [stat.st_size, stat.st_mtime_ns]
    return found


def folder_beside(output: Path, key: str) -> Path:
    """The hidden folder .OUTPUT.KEY.parts of an output's parts, made if it does not exist."""
    folder = place_beside(output, key)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    return folder


def place_beside(output: Path, key: str) -> Path:
    """`folder_beside`, which may not be there."""
    return output.parent / f".{output.name}.{key}.parts"


def folders_beside(output: Path) -> list[Path]:
    """All folders of an output's parts, finished and not."""
    return [
        path
        for path in output.absolute().parent.iterdir()
        if re.fullmatch(rf"\.{re.escape(output.name)}\.[^.]+\.parts", path.name)
    ]


def remove_empty(folder: Path) -> None:
    """Removes a folder with nothing worth continuing: empty, or with what kills left unfinished."""
    if not any(folder.glob("[!.]*")):
        shutil.rmtree(folder, ignore_errors=True)


def remove_parts(output: Path) -> None:
    """Removes `.OUTPUT.*.parts`, finished and not, and what kills left of `written_whole`."""
    for path in output.absolute().parent.iterdir():
        if not path.name.startswith(f".{output.name}."):
            continue
        rest = path.name.removeprefix(f".{output.name}.")
        # Without a further dot: those of S.npy are not S's.
        if not re.fullmatch(r"[^.]+\.parts|[a-z0-9_]{8}(\.tmp)?", rest):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not rest.endswith(".parts"):
            path.unlink(missing_ok=True)
