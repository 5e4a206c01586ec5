"""Whose face is on each row of a file of embeddings: integers or names, one per row.

N faces.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.tables.blocks import one_line, open_npy
from ida_jax.tables.parquet_files import is_parquet, parquet_batches, parquet_layout
from ida_jax.tables.text import (
    canonical,
    first_not_text,
    name_fault,
    shown,
    text_lines,
    whole_number,
)

_LARGEST = 2**63
_BLOCK = 1 << 18


def read_people(path: str | os.PathLike[str], rows: int | None = None) -> np.ndarray:
    """Who is on each row: integers or strings [N], from .npy, Parquet, or text with one per line.

    Lines are integers where every line is one (np.savetxt's too), and names otherwise. Of Parquet,
    a file or a folder of them, the column `label` is read, or the only one.

    Args:
      path: the file.
      rows: N, the embeddings that the labels are of; any number if None.

    Raises:
      UserError: no such file, not a whole one of either kind, an empty line, numbers that are not
        whole; neither integers nor names; a different number of them.
    """
    people = _read(Path(path))
    if people.ndim != 1 or people.dtype.kind not in "iuU":
        raise UserError(
            f"{path} is {people.dtype} {list(people.shape)}: expected integers or names [N]"
        )
    if rows is not None and len(people) != rows:
        raise UserError(f"{path}: {len(people)} labels for {rows} embeddings, expected one each")
    return people


def read_people_or_images(
    path: str | os.PathLike[str], rows: int, *, among: Sequence[str]
) -> np.ndarray:
    """As `read_people`; of a list of images' names, PERSON/IMAGE, the people.

    Args:
      among: names that may bear a stroke themselves: a list with one of these is one of people.
    """
    people = read_people(path, rows)
    if people.dtype.kind == "U" and not set(people.tolist()) & set(among):
        # A list of images, as E.names.txt is one.
        people = np.array(people_of_images(people.tolist()) or people)
    return people


def people_of_images(names: Sequence[str]) -> list[str] | None:
    """Who is on each image by its name, PERSON/IMAGE: the folder, as in a folder of crops.

    None where a name has no folder.
    """
    if not all("/" in name for name in names):
        return None
    return [name.split("/")[-2] for name in names]


def name_among(people: Sequence[str] | np.ndarray) -> str:
    """The first label that makes a list one of names, in words: one that is not a whole number."""
    for row, person in enumerate(people):
        if whole_number(str(person)) is None:
            return f"row {row} is {shown(str(person))}"
    return f"row 0 is {shown(str(people[0]))}"


def numbered(people: np.ndarray) -> np.ndarray:
    """Identities as int64 [N]: names by their order; negative integers, who are unknown, are −1."""
    if people.dtype.kind == "U":
        return np.unique(people, return_inverse=True)[1]
    return np.where(people < 0, -1, people).astype(np.int64)


def labels_among(
    people: Sequence[str] | np.ndarray, names: Sequence[str], labels: np.ndarray
) -> np.ndarray | None:
    """Each face's identity in the numbering of others, by name, int32 [N].

    −1 for those who are not among the others; None where no one is.

    Args:
      people: the N faces' names.
      names: the others' names.
      labels: int, the others' identities, in the order of `names`.
    """
    label_of = dict(zip(map(canonical, names), labels.tolist(), strict=True))
    own = np.array([label_of.get(canonical(str(person)), -1) for person in people], np.int32)
    return own if np.any(own >= 0) else None


def _read(path: Path) -> np.ndarray:
    if is_parquet(path):
        return _from_parquet(path)
    if path.suffix.lower() == ".npy":
        require_file(path, what="labels")
        return _named(path, np.array(open_npy(path, what="labels")))
    lines = text_lines(path, what="labels")
    if "" in lines:
        raise UserError(
            f"{path}: line {lines.index('') + 1} is empty, expected one identity per line"
        )
    numbers = [whole_number(line) for line in lines]
    if None not in numbers:
        if all(-_LARGEST <= number < _LARGEST for number in numbers):
            return np.array(numbers, np.int64)
        # Hashes of more than 64 bits are names; what is negative is unknown, and must stay so.
        if min(numbers) < 0:
            row = next(
                row for row, number in enumerate(numbers) if not -_LARGEST <= number < _LARGEST
            )
            raise UserError(
                f"{path}, line {row + 1}: {shown(lines[row])} is beyond 64 bits: number the "
                "identities from 0"
            )
    elif all(_is_number(line) for line in lines):
        row = numbers.index(None)
        raise UserError(
            f"{path}, line {row + 1}: {shown(lines[row])} is not a whole number, expected one "
            "identity a line"
        )
    return np.array(lines, np.str_)


def _from_parquet(path: Path) -> np.ndarray:
    from pyarrow import types

    layout = parquet_layout(path, what="labels")
    fields = [*layout.schema, *layout.partitions]
    chosen = fields if len(fields) == 1 else [field for field in fields if field.name == "label"]
    if len(chosen) != 1:
        names = ", ".join(shown(field.name) for field in fields[:9])
        raise UserError(f"{path} has the columns {names}: expected one named label")
    ((name, kind),) = [(field.name, field.type) for field in chosen]
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(f"{path}: column '{name}' is {kind}, expected integers or names")
    done, people = 0, []
    for batch in parquet_batches(path, [name], rows=_BLOCK):
        column = batch.column(0)
        if (bad := first_not_text(column)) is not None:
            raise UserError(f"{layout.place(done + bad)}: its {name} is not UTF-8 text")
        if column.null_count:
            bad = column.is_null().index(True).as_py()
            raise UserError(
                f"{layout.place(done + bad)}: its {name} is empty, expected an identity"
            )
        done += len(column)
        people += column.to_pylist()
    return np.array(people) if types.is_integer(kind) else _named(path, np.array(people, np.str_))


def _is_number(line: str) -> bool:
    try:
        float(line)
    except ValueError:
        return False
    return True


def _named(path: Path, people: np.ndarray) -> np.ndarray:
    """The array itself; names in it as a list in text would give them."""
    if people.dtype.kind != "U":
        return people
    try:
        names = [canonical(name) for name in people.ravel().tolist()]
    except (ValueError, SystemError) as error:  # code points that Unicode does not have
        raise UserError(f"{path} holds no text: {one_line(error)}") from error
    for row, name in enumerate(names):
        if fault := name_fault(name):
            raise UserError(f"{path}: row {row} {fault}")
    return np.array(names, np.str_).reshape(people.shape)
