"""Contact sheets: every image is found where it belongs, and nothing else is on the paper."""

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.data.contact_sheet import contact_sheet


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (1, 3), (3, 4), (4, 4), (5, 4), (6, 2)])
def test_images_lie_row_by_row_with_gaps(count, columns):
    height, width = 5, 7
    images = np.random.default_rng(0).integers(0, 200, (count, height, width, 3), np.uint8)
    sheet = contact_sheet(images, columns=columns)
    rows = -(-count // columns)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (rows * (height + 2) + 2, columns * (width + 2) + 2, 3)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * (height + 2), 2 + i % columns * (width + 2)
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], image)
        sheet[top : top + height, left : left + width] = 255
    assert (sheet == 255).all()


def test_a_list_of_images_will_do():
    images = [np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)]
    np.testing.assert_array_equal(
        contact_sheet(images, columns=2), contact_sheet(np.stack(images), columns=2)
    )


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        ([], 2, "0 images were given"),
        ([np.zeros((4, 4, 3), np.uint8)], 0, "columns is 0"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], 2, "image 1 is"),
        ([np.zeros((4, 4, 3), np.float32)], 2, "image 0 is float32"),
        ([np.zeros((4, 4), np.uint8)], 2, "image 0 is"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(images, columns, message):
    with pytest.raises(UserError, match=message):
        contact_sheet(images, columns=columns)
