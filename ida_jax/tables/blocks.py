"""What the readers of embeddings, pairs and scores share: suffixes and .npy.

Whatever is read comes in blocks, so that memory does not grow with the file.
"""

import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import not_whole, require_file


def known_suffix(path: Path, allowed: Sequence[str], *, what: str) -> str:
    """The file's suffix in lower case."""
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise UserError(
            f"{path} ends in '{path.suffix}': {what} are one of {', '.join(allowed)} files"
        )
    return suffix


def one_line(error: Exception) -> str:
    """A library's message without its line breaks."""
    return " ".join(str(error).split())


def open_npy(path: Path, *, what: str) -> np.memmap:
    """The array of an .npy file as a read-only map; no page of it is read yet."""
    require_file(path, what=what)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, OverflowError, TypeError, SyntaxError, MemoryError, RecursionError,
            tokenize.TokenError) as error:  # fmt: skip
        raise not_whole(path, ".npy file", error) from error


def read_rows(array: np.memmap, start: int, stop: int) -> np.ndarray:
    """Rows start … stop−1 of a map [P, 2], read from its file.

    The pages that a map has touched count as resident memory, and would grow with the file; what is
    read belongs to the caller. Both orders are read: `np.array([i, j]).T` is saved by columns.
    """
    count, size = stop - start, array.dtype.itemsize

    def read(first: int, entries: int) -> np.ndarray:
        try:
            values = np.fromfile(
                array.filename, array.dtype, entries, offset=array.offset + first * size
            )
        except OSError as error:
            raise UserError(f"cannot read {array.filename}: {one_line(error)}") from error
        if len(values) != entries:
            raise UserError(f"{array.filename} was truncated while it was read")
        return values

    if array.flags.c_contiguous:
        return read(2 * start, 2 * count).reshape(count, 2)
    return np.stack([read(start, count), read(len(array) + start, count)], axis=1)
