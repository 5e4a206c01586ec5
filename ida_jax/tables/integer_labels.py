"""Who is on each row of a file of embeddings: integers, one a face.

N faces.
"""

from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.tables.blocks import open_npy


def read_labels(path: Path) -> np.ndarray:
    """Identities as integers [N], from .npy, or from text of one a line (UTF-8).

    Raises:
      UserError: no such file, not a whole one of either kind, or a line that is no integer.
    """
    if path.suffix.lower() == ".npy":
        return np.asarray(open_npy(path, what="labels"))
    require_file(path, what="labels")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as text: {error}") from error
    labels = np.empty(len(lines), np.int64)
    for number, line in enumerate(lines):
        try:
            labels[number] = int(line)
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{path}, line {number + 1}: {line[:40]!r}, expected an integer, the identity"
            ) from error
    return labels
