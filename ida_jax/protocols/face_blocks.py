"""Faces in blocks of one fixed size, so that a face's values do not depend on the faces beside it.

A matrix product's last bits depend on its shape: a search, or an SSR module, of 8191 rows may
differ from one of 8192 there.

N faces, D embedding, n rows of a block.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import UnitRows, unit_rows

# The sizes: the larger one's search keeps every core busy, the smaller one is for few faces.
SIZES = (512, 8192)


class FaceBlock(NamedTuple):
    """The next faces of a stream, filled up to a block.

    Attributes:
      faces: float32 [n, D], unit rows; bad rows and the rest are filled.
      good: bool [n], which rows are faces.
      bad: the numbers of zero, NaN and infinite rows, from the block's first.
      count: how many faces the block holds.
      norms: float64 [n], those of the faces as they were given; NaN of bad rows and of the rest.
    """

    faces: np.ndarray
    good: np.ndarray
    bad: np.ndarray
    count: int
    norms: np.ndarray


def filled_up(faces: np.ndarray, block: int) -> np.ndarray:
    """Unit rows [N, D], N ≤ n, with more below them: a copy, float32 [n, D]."""
    return np.concatenate([faces, _no_faces(block - len(faces), faces.shape[1])])


def fixed_blocks(
    blocks: Iterable[np.ndarray], *, width: int, block: int, reach: int, what: str
) -> Iterator[FaceBlock]:
    """The first `reach` faces of a stream by blocks of one size, whatever comes in.

    Args:
      blocks: the stream, [·, D] floating point, rows of any norm.
      width: D.
      block: rows of what is given.
      reach: the number of rows after which no further block is taken; the stream may hold fewer.
      what: how an error names them.
    """
    faces, bad, count, left = _no_faces(block, width), np.zeros(block, bool), 0, reach
    norms = np.full(block, np.nan)
    for rows in blocks:
        if np.ndim(rows) != 2 or np.shape(rows)[1] != width:
            raise UserError(
                f"a block of {what} is {list(np.shape(rows))}, expected [n, {width}]: faces that "
                "are compared must come from the same model"
            )
        for first in range(0, len(rows), block):
            some = unit_rows(rows[first : first + block], skip_bad=True, what=what)
            while len(some.bad) and left:
                taken = min(len(some.bad), block - count, left)
                here = slice(count, count + taken)
                faces[here][~some.bad[:taken]] = some.embeddings[:taken][~some.bad[:taken]]
                bad[here], norms[here] = some.bad[:taken], some.norms[:taken]
                count, left = count + taken, left - taken
                some = UnitRows(*(values[taken:] for values in some))
                if count == block:
                    yield FaceBlock(faces, ~bad, np.flatnonzero(bad), count, norms)
                    faces, bad, count = _no_faces(block, width), np.zeros(block, bool), 0
                    norms = np.full(block, np.nan)
        if not left:
            break
    if count:
        good = ~bad & (np.arange(block) < count)
        yield FaceBlock(faces, good, np.flatnonzero(bad), count, norms)


def _no_faces(count: int, width: int) -> np.ndarray:
    """Rows to fill a block with: unit ones, since methods refuse others."""
    out = np.zeros((count, width), np.float32)
    out[:, 0] = 1
    return out
