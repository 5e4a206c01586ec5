"""Lists of five points of faces: LFW's (image x1 y1 … x5 y5) and IJB's (a detector's score after).

N faces.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.data.alignment import fit_residual
from ida_jax.tables.text import TextBlock, parse_columns, shown, split_line, text_blocks

_EXPECTED = "expected an image, x1 y1 … x5 y5, and a score or none"
# A list's points [N, 5, 2] put right where they were written in another order.
_ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x1 … x5 y1 … y5": lambda points: points.reshape(-1, 2, 5).swapaxes(1, 2),
    "y1 … y5 x1 … x5": lambda points: points.reshape(-1, 2, 5).swapaxes(1, 2)[..., ::-1],
    "y1 x1 … y5 x5": lambda points: points[..., ::-1],
    "left and right exchanged": lambda points: points[:, [1, 0, 2, 4, 3]],
    "the eyes exchanged": lambda points: points[:, [1, 0, 2, 3, 4]],
    "the corners of the mouth exchanged": lambda points: points[:, [0, 1, 2, 4, 3]],
    "the nose last": lambda points: points[:, [0, 1, 4, 2, 3]],
    "the nose first": lambda points: points[:, [1, 2, 0, 3, 4]],
}
# Residuals (`fit_residual`) of LFW's 13,233 faces, written rightly: 0.02 at the median, 0.09 at the
# 99th percentile, 0.28 at most; of profiles up to 0.7. Read in a wrong order they are 0.4 to 1 at
# the median. A face counts as misread where its residual is above the first and another order
# brings it below the second: none of LFW's is, nor any of 20,000 turned, nodding and rotated
# profiles; of faces in a wrong order nearly all are.
_BAD, _GOOD = 0.2, 0.1
# The share of misread faces from which on a list is refused. Detectors err on single faces.
_MISREAD = 0.25


class Landmarks(NamedTuple):
    """Five points per image.

    Attributes:
      names: N distinct names of images, as the list writes them.
      points: float64 [N, 5, 2], (x, y) in pixels.
      scores: float64 [N], the detector's, or None where the list has none.
    """

    names: tuple[str, ...]
    points: np.ndarray
    scores: np.ndarray | None


def read_landmarks(path: str | os.PathLike[str]) -> Landmarks:
    """Reads a list of five points, one image per line, separated by tabs or by spaces.

    All lines have 11 fields, or all have 12. A name may hold spaces where tabs separate.

    Raises:
      UserError: a file that is absent, empty or not text; a malformed line; a number that is
        not finite; an image that comes twice; points that fit a face in another order alone. The
        message gives the file and the line.
    """
    path = Path(path)
    require_file(path, what="landmarks")
    names: list[str] = []
    numbers = []
    width = 0
    for block in text_blocks(path):
        if not width:
            width = len(split_line(block.text.split(b"\n", 1)[0].decode()))
            if width not in (11, 12):
                raise UserError(f"{path}, line 1: {width} fields were found, {_EXPECTED}")
        block_names, block_numbers = _fast(block, width) or _slow(path, block, width)
        names += block_names
        numbers.append(block_numbers)
    if not names:
        raise UserError(f"{path} is empty: {_EXPECTED} on each line")
    values = np.concatenate(numbers)
    if not np.isfinite(values).all():
        line = int(np.argmin(np.isfinite(values).all(axis=1))) + 1
        raise UserError(f"{path}, line {line}: a number is not finite, {_EXPECTED}")
    if len(set(names)) < len(names):
        _raise_repeated(path, names)
    points = values[:, :10].reshape(-1, 5, 2)
    _refuse_other_orders(path, points)
    return Landmarks(tuple(names), points, values[:, 10] if width == 12 else None)


def _fast(block: TextBlock, width: int) -> tuple[list[str], np.ndarray] | None:
    """The block by Arrow; None where it is not all of the plain form."""
    import pyarrow as pa

    # A quote would have Arrow take it away, and with it what is between two of them.
    if b'"' in block.text:
        return None
    tabs = b"\t" in block.text
    types = [pa.string(), *[pa.float64()] * (width - 1)]
    columns = parse_columns(block, "\t" if tabs else " ", types)
    if columns is None:
        return None
    names = columns[0].to_pylist()
    if any(not name or name != name.strip() for name in names):
        return None
    return names, np.stack([column.to_numpy() for column in columns[1:]], axis=1)


def _slow(path: Path, block: TextBlock, width: int) -> tuple[list[str], np.ndarray]:
    """The block line by line: several spaces in a row, or a mistake, which is named."""
    names, numbers = [], []
    for number, line in block.lines():
        where = f"{path}, line {number}"
        fields = split_line(line.decode())
        if len(fields) != width or not fields[0]:
            fault = f"{len(fields)} fields were found, the first line has {width}"
            raise UserError(f"{where}: {fault if fields else 'a blank line'}; {_EXPECTED}")
        try:
            numbers.append([float(field) for field in fields[1:]])
        except ValueError as error:
            raise UserError(f"{where}: {shown(line.decode())}: {_EXPECTED}") from error
        names.append(fields[0])
    return names, np.array(numbers).reshape(-1, width - 1)


def _refuse_other_orders(path: Path, points: np.ndarray) -> None:
    bad = fit_residual(points)[0] > _BAD
    if np.count_nonzero(bad) < _MISREAD * len(points):
        return
    found = []
    for name, reordered in _ORDERS.items():
        residual, turn = fit_residual(reordered(points))
        misread = bad & (residual < _GOOD)
        if misread.any() and np.count_nonzero(misread) >= _MISREAD * len(points):
            # Exchanged sides fit mirrored points as well, but turned by 90°.
            found.append((np.median((residual + turn / 10)[misread]), name, misread))
    if found:
        _, name, misread = min(found, key=lambda each: each[0])
        raise UserError(
            f"{path}, line {int(np.argmax(misread)) + 1}: the points do not form a face in this "
            f"order, but do in another one ({name}), as those of {np.count_nonzero(misread):,} of "
            f"{len(points):,} lines: expected x1 y1 … x5 y5 of the left eye in the picture, the "
            "right eye, the nose, the left and the right corner of the mouth"
        )


def _raise_repeated(path: Path, names: list[str]) -> None:
    lines: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name in lines:
            raise UserError(
                f"{path}, line {number}: {name!r} is on line {lines[name]} too, expected one line "
                "an image"
            )
        lines[name] = number
