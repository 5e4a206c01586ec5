"""Whose face is on each row of a file of embeddings: integers or names, one a row.

N faces.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file


def read_people(path: str | os.PathLike[str], rows: int | None = None) -> np.ndarray:
    """Who is on each row: integers or strings [N], from .npy, or from text with one a line (UTF-8).

    Lines are integers where every line is one, and names otherwise.

    Args:
      path: the file.
      rows: N, the embeddings that the labels are of; any number if None.

    Raises:
      UserError: no such file, not a whole one of either kind, or an empty line; neither integers
        nor names; a different number of them.
    """
    people = _read(Path(path))
    if people.ndim != 1 or people.dtype.kind not in "iuU":
        raise UserError(
            f"{path} is {people.dtype} {list(people.shape)}: expected integers or names [N]"
        )
    if rows is not None and len(people) != rows:
        raise UserError(f"{path}: {len(people)} labels for {rows} embeddings, expected one each")
    return people


def numbered(people: np.ndarray) -> np.ndarray:
    """Identities as int64 [N]: names by their order; negative integers, who are unknown, are −1."""
    if people.dtype.kind == "U":
        return np.unique(people, return_inverse=True)[1]
    return np.where(people < 0, -1, people).astype(np.int64)


def labels_among(
    people: Sequence[str] | np.ndarray, names: Sequence[str], labels: np.ndarray
) -> np.ndarray | None:
    """Each face's identity in the numbering of others, by name, int32 [N].

    −1 for those who are not among the others; None where nobody is.

    Args:
      people: the N faces' names.
      names: the others' names.
      labels: int, the others' identities, in the order of `names`.
    """
    label_of = dict(zip(names, labels.tolist(), strict=True))
    own = np.array([label_of.get(person, -1) for person in people], np.int32)
    return own if np.any(own >= 0) else None


def _read(path: Path) -> np.ndarray:
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
    integers = all(re.fullmatch("-?[0-9]{1,18}", line) for line in lines)
    return np.array(lines, np.int64 if integers else np.str_)
