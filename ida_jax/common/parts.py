"""Work in parts that survives a kill: a file a part, in one folder.

A part is written whole, and one that is there is not made again: the same command continues where
it was killed. How N rows are cut depends on N and the size alone, so that any number of processes
makes the same parts. What parts are made of is named by their folder's name, or stored inside them
and compared when they are read; so another job's parts are never taken.

N rows.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole


class Part(NamedTuple):
    """Some of the rows, and the file that holds what was made of them."""

    rows: range
    path: Path


def write_npy(path: Path, values: np.ndarray) -> None:
    """Writes one array as .npy, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def read_npy(path: Path) -> np.ndarray:
    """The array of a part; UserError where the file is damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and run the same command again"
        ) from error


class Parts:
    """The parts of one job on N rows, in the rows' order.

    Args:
      folder: exists, and is this job's alone, or holds files whose `read` refuses another job's.
      rows: N; 0 has no parts.
      size: rows a part, the most that a kill costs; the last part may be smaller.
      name: of a part's file, by its `start` row or its `number`.
      done: whether a part need not be made.
      write: keeps what was made of a part, whole or not at all.
      read: gives it back.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        size: int,
        *,
        name: str = "from-{start:09}.npy",
        done: Callable[[Path], bool] = Path.is_file,
        write: Callable[[Path, np.ndarray], None] = write_npy,
        read: Callable[[Path], np.ndarray] = read_npy,
    ) -> None:
        self.write, self.read, self._rows, self._done = write, read, rows, done
        self._all = [
            Part(rows, folder / name.format(start=rows.start, number=number))
            for number, rows in enumerate(cut(rows, size))
        ]

    def __iter__(self) -> Iterator[Part]:
        return iter(self._all)

    def left(self, process: int = 0, processes: int = 1) -> list[Part]:
        """The parts of one process's share that are still to be made."""
        return [part for part in self._all[process::processes] if not self._done(part.path)]

    def values(self, make: Callable[[range], np.ndarray] | None = None) -> Iterator[np.ndarray]:
        """What was made of each part, in order; `make` gives it for the rows of one not there."""
        for rows, path in self:
            if make is not None and not self._done(path):
                self.write(path, make(rows))
            yield self.read(path)

    def whole(self, make: Callable[[range], np.ndarray], width: tuple[int, ...] = ()) -> np.ndarray:
        """Float32 [N, *width] of all parts; only one of them is in memory twice."""
        whole = np.empty((self._rows, *width), np.float32)
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
    """A file's place, size and time of change, which differ once it has been changed."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def folder_beside(output: Path, key: str) -> Path:
    """The hidden folder .OUTPUT.KEY.parts of an output's parts, made where it is not there.

    Raises:
      UserError: it cannot be made.
    """
    folder = output.parent / f".{output.name}.{key}.parts"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    return folder


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
        if rest.endswith(".parts"):
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"[a-z0-9_]{8}(\.tmp)?", rest):
            path.unlink(missing_ok=True)
