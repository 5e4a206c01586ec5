"""Images by the names of embeddings: a face's image is the file of its name, of any suffix."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data.sources.image_files import ImageFiles, open_images
from ida_jax.data.sources.image_names import without_suffix
from ida_jax.tables.text import canonical


def open_named_images(
    path: str | os.PathLike[str], names: Sequence[str] | None
) -> tuple[ImageFiles, list[int]]:
    """The images at a path, and int [N], each name's among them.

    Args:
      path: as `open_images`.
      names: N names, with or without an image's suffix; None where the embeddings have none.

    Raises:
      UserError: as `open_images`; no names, or one without an image.
    """
    files = open_images(path)
    if names is None:
        raise UserError("--images goes by E's names: give --names=FILE, one per line")
    row_of = {without_suffix(canonical(name)): row for row, name in enumerate(files.names)}
    rows = [row_of.get(without_suffix(name), -1) for name in names]
    if -1 in rows:
        raise UserError(
            f"{rows.count(-1):,} of {len(rows):,} faces have no image in {path}, the first is "
            f"{names[rows.index(-1)]!r}: expected E's names"
        )
    return files, rows


def image_of_name(
    path: str | os.PathLike[str], names: Sequence[str] | None
) -> Callable[[str], np.ndarray]:
    """A name's image, uint8 [H, W, 3] RGB, read when asked for; as `open_named_images`."""
    files, rows = open_named_images(path, names)
    row_of = dict(zip(names or (), rows, strict=True))
    return lambda name: files[row_of[name]]
