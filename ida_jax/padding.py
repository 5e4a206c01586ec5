"""Blocks of few fixed sizes, so that no number of rows compiles anew."""

from collections.abc import Sequence

import numpy as np


def block_size(sizes: Sequence[int], rows: int) -> int:
    """The smallest of the ascending sizes that holds so many rows; the largest where none does."""
    return next((size for size in sizes if size >= rows), sizes[-1])


def padded(rows: np.ndarray, block: int) -> np.ndarray:
    """A copy of the rows, filled up to a block with zeros.

    A copy in any case: jax may take a NumPy array's memory as it is, and then keeps all of it, and
    what it is a view of, until some later call.
    """
    out = np.zeros((block, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out
