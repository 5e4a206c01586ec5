"""Whose group is which: a list of people or images with a group each, or one group per row.

A list is text of two columns (.csv, .tsv; .txt also between white space): a person, or an image by
its name, and the group. A first line that ends in `group` is a header. An image's own
entry goes before its person's. Any other file is one group per row, as
`ida_jax.tables.labelled_scores.read_groups` reads it.

N faces.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.common.command_line import user_path
from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.tables.labelled_scores import Groups, read_groups
from ida_jax.tables.text import (
    canonical,
    delimiter_of,
    require_closed_quotes,
    shown,
    split_fields,
    split_line,
    text_blocks,
    whole_number,
)

_LEVELS = 20
_TEXTS = (".csv", ".tsv", ".txt")
_NAMED = ("person", "people", "identity", "name", "image", "face", "file", "label")


def read_group_list(path: Path) -> dict[str, str] | None:
    """{name: group} of a list by name; None where the file holds one group per row."""
    require_file(path, what="groups")
    if path.suffix.lower() not in _TEXTS:
        return None
    groups: dict[str, str] = {}
    delimiter = None
    for block in text_blocks(path):
        for number, line in block.lines():
            if number == 1:
                delimiter = delimiter_of(line)
                if path.suffix.lower() == ".txt" and delimiter.encode() not in line:
                    delimiter = " "
                fields = _fields(path, number, line, delimiter)
                if not _is_named(fields) or fields[0].lower() == "group":
                    return None  # `read_groups` finds the column
                if fields[1].lower() == "group":
                    continue
            fields = _fields(path, number, line, delimiter)
            if len(fields) != 2 or not all(fields):
                raise UserError(
                    f"{path}, line {number}: {shown(line.decode())} is not a name and a group, "
                    "expected two fields"
                )
            name, group = fields
            if groups.setdefault(name, group) != group:
                raise UserError(
                    f"{path}, line {number}: {shown(name)} is in group {shown(group)}, and was in "
                    f"{shown(groups[name])} before: expected one group a name"
                )
    if not groups:
        raise UserError(f"{path} lists no names: expected a name and a group a line")
    return groups


def groups_of_names(path: Path, groups: dict[str, str], names: Sequence[str]) -> Groups:
    """Each name's group by a list.

    Of an image PERSON/PERSON_0001.jpg these are looked up in turn: the name itself, the name
    without its ending, the file's name, the folder, and the file's name without its number.

    Args:
      path: the list's, for a message.
      groups: the list.
      names: N people, or images.
    """
    found = [next((groups[k] for k in _keys(name) if k in groups), None) for name in names]
    present = sorted({group for group in found if group is not None})
    if not present:
        raise UserError(
            f"none of the {len(names):,} names, such as {shown(str(names[0]))}, is among the "
            f"{len(groups):,} of {path}, such as {shown(next(iter(groups)))}: expected people or "
            "images by the same names"
        )
    place = {group: code for code, group in enumerate(present)} | {None: -1}
    return Groups(np.array([place[group] for group in found], np.int32), tuple(present))


def read_face_groups(path: Path, names: Sequence[str] | None, rows: int) -> Groups:
    """The groups of N faces, by a list of names or with one group per row.

    Args:
      names: the faces' names, or the names of the people on them; None where unknown.
      rows: N.

    Raises:
      UserError: as `read_group_list`, `groups_of_names` and `read_groups`; a different number of
        rows; a list by name for faces without names.
    """
    groups = read_group_list(path)
    if groups is None:
        of_rows = read_groups(path)
        if (given := len(of_rows.codes)) != rows:
            raise UserError(
                f"{path} has {given} rows for {rows} faces: expected one group per face in their "
                "order, or a list of names and groups"
            )
        return of_rows
    if names is None:
        raise UserError(
            f"{path} lists groups by name, and the faces have no names: give them by --names or "
            "--labels, or one group per row"
        )
    return groups_of_names(path, groups, names)


def without_group(grouped: Groups, what: str) -> tuple[str, ...]:
    """A sentence on how many have no group, if any."""
    left = int(np.count_nonzero(grouped.codes < 0))
    if not left:
        return ()
    return (f"{left:,} of {grouped.codes.size:,} {what} have no group, and are in none",)


def groups_option(text: str) -> Path | str:
    """An argparse type: a file of groups, or "norms:N" itself."""
    try:
        return user_path(text) if norm_levels(text) is None else text
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def norm_levels(text: str) -> int | None:
    """N of "norms:N", 20 of "norms": groups by the embeddings' norms; None of any other text."""
    kind, colon, count = text.partition(":")
    if kind != "norms":
        return None
    levels = whole_number(count) if colon else _LEVELS
    if levels is None or levels < 2:
        raise UserError(f"'{text}': expected norms:N, N groups of about as many pairs, 2 or more")
    return levels


def _is_named(fields: list[str]) -> bool:
    """Whether a file's first line is of a list by name: a header, or a name and a group.

    Two columns with another header are a table with a column `group`, one row per pair or face.
    """
    if len(fields) != 2:
        return False
    return fields[1].lower() != "group" or fields[0].lower() in _NAMED


def _fields(path: Path, number: int, line: bytes, delimiter: str) -> list[str]:
    if delimiter == " ":
        return split_line(line.decode())
    require_closed_quotes(path, number, line)
    return [field.strip() for field in split_fields(line, delimiter)]


def _keys(name: str) -> list[str]:
    """What an image or a person may be listed under."""
    name = canonical(str(name))
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", name)
    folder, slash, file = stem.rpartition("/")
    keys = [name, stem, file]
    if slash:
        keys.append(folder.rsplit("/", 1)[-1])
    return [*keys, re.sub(r"_\d+$", "", file)]
