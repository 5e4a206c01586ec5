"""Many images on one sheet. N images of height H and width W."""

from collections.abc import Sequence

import numpy as np

from ida_jax.common.errors import UserError

GAP = 2
PAPER = 255


def contact_sheet(images: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
    """Composes images row by row into a grid, with a white gap of 2 pixels around each.

    Args:
      images: N images of one size, uint8 [H, W, 3] each, N ≥ 1.

    Returns:
      uint8 [rows · (H + 2) + 2, columns · (W + 2) + 2, 3], rows = ⌈N / columns⌉.
    """
    if columns < 1:
        raise UserError(f"columns is {columns}; give a whole number of at least 1")
    if len(images) == 0:
        raise UserError("0 images were given: expected at least 1")
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    shape = rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3
    sheet = np.full(shape, PAPER, np.uint8)
    for i, image in enumerate(images):
        if image.shape != (height, width, 3) or image.dtype != np.uint8:
            raise UserError(
                f"image {i} is {image.dtype} {image.shape}; a sheet takes uint8 images of one "
                f"size, here {(height, width, 3)}: resize them first"
            )
        top = GAP + (i // columns) * (height + GAP)
        left = GAP + (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet
