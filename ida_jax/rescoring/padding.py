"""Blocks of few fixed sizes, so that no number of rows compiles anew."""

from collections.abc import Sequence

import numpy as np


def block_size(sizes: Sequence[int], rows: int) -> int:
    """The smallest of the ascending sizes that holds so many rows; the largest where none does."""
    return next((size for size in sizes if size >= rows), sizes[-1])


def padded(rows: np.ndarray, block: int) -> np.ndarray:
    """The rows, filled up to a block with zeros; the array itself where nothing is missing."""
    if len(rows) == block:
        return rows
    out = np.zeros((block, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out
