"""Whose face is on each row of a file of embeddings: integers or names, one a row.

N faces.
"""

import os
import re
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file


def read_people(path: str | os.PathLike[str]) -> np.ndarray:
    """Who is on each row: integers or strings [N], from .npy, or from text with one a line (UTF-8).

    Lines are integers where every line is one, and names otherwise.

    Raises:
      UserError: no such file, not a whole one of either kind, or an empty line.
    """
    path = Path(path)
    require_file(path, what="labels")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a whole file of labels: {error}") from error
    if "" in lines:
        raise UserError(
            f"{path}: line {lines.index('') + 1} is empty, expected one identity a line"
        )
    numbers = all(re.fullmatch("-?[0-9]{1,18}", line) for line in lines)
    return np.array(lines, np.int64 if numbers else np.str_)
