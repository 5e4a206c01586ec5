"""Lists of identities that show one person, kept by hand: two names, or two integers, a line.

    Glenn_Rivers Doc_Rivers          a text file, between blanks; or commas, or tabs
    # a comment                      is passed over, like a blank line

A first line that names columns `identity_1` and `identity_2` may have others beside them: the
candidates of ida-jax check_labels, once judged, are such a file. With a column `decision`
a line counts where it says same (one person) or mislabelled (an image of one under the other's
name), and not where it says different, unsure or nothing yet.

M pairs.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.metrics.ignored import between
from ida_jax.tables.labelled_scores import Identities
from ida_jax.tables.text import (
    canonical,
    require_closed_quotes,
    shown,
    split_fields,
    text_blocks,
    whole_number,
)

COLUMNS = ("identity_1", "identity_2")
DECISION = "decision"
# What is decided of a pair, and whether it is then left out.
DECISIONS = {"same": True, "mislabelled": True, "different": False, "unsure": False, "": False}


class IdentityPairs(NamedTuple):
    """A list as it was read.

    Attributes:
      path: the file.
      pairs: the M pairs to leave out, each once.
      kept: lines that were decided otherwise, or not yet.
    """

    path: Path
    pairs: tuple[tuple[str, str], ...]
    kept: int


class KnownPairs(NamedTuple):
    """A list's pairs among the identities of an evaluation.

    Attributes:
      listed: the list.
      codes: int64 [m, 2], places in the identities.
      unknown: the number of the list's other pairs, of which one or both are not there.
    """

    listed: IdentityPairs
    codes: np.ndarray
    unknown: int

    def note(self, pairs: int) -> str:
        """What a reader of the figures must know of the impostor pairs that were left out."""
        note = (
            f"{pairs:,} impostor pairs between {len(self.codes):,} pairs of identities that show "
            f"one person ({self.listed.path.name}) were left out"
        )
        if self.unknown:
            note += f"; {self.unknown:,} pairs of the list have an identity that is not here"
        return note


def read_identity_pairs(path: str | os.PathLike[str]) -> IdentityPairs:
    """Reads a list of identities that show one person.

    Raises:
      UserError: no such file, a line that is not two different identities, an unknown decision, or
        no pair to leave out; by line.
    """
    path = Path(path)
    require_file(path, what="identity pairs")
    pairs: dict[tuple[str, str], None] = {}
    delimiter: str | None = None
    columns: dict[str, int] | None = None
    kept = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        first_line = delimiter is None
        if first_line:
            delimiter = "\t" if "\t" in line else "," if "," in line else " "
        require_closed_quotes(path, number, line.encode())
        fields = line.split() if delimiter == " " else _fields(line, delimiter)
        if first_line and set(COLUMNS) <= {field.lower() for field in fields}:
            columns = {field.lower(): place for place, field in enumerate(fields)}
            continue
        pair, decision = _parse(fields, columns, where)
        if not decision:
            kept += 1
        elif pair[::-1] not in pairs:
            pairs[pair] = None
    if not pairs:
        judged = f", {kept} that are decided otherwise or not yet" if kept else ""
        raise UserError(f"{path} has no pair of identities to leave out{judged}")
    return IdentityPairs(path, tuple(pairs), kept)


def pairs_among(
    listed: IdentityPairs, identities: Sequence[str] | np.ndarray, *, what: str = "identities"
) -> KnownPairs:
    """The pairs whose identities are both there.

    Args:
      listed: names, or integers where the identities are integers.
      identities: the distinct ones of the evaluation.
      what: how an error calls them.
    """
    values = np.asarray(identities)
    numbers = np.issubdtype(values.dtype, np.integer)
    names = values.tolist() if numbers else [canonical(str(name)) for name in values.tolist()]
    place = {name: code for code, name in enumerate(names)}
    read = whole_number if numbers else canonical
    sides = [[place.get(read(name), -1) for name in pair] for pair in listed.pairs]
    codes = np.array(sides, np.int64).reshape(-1, 2)
    if (codes < 0).all():
        first = listed.pairs[0]
        raise UserError(
            f"{listed.path} names none of the {len(names):,} {what} ({shown(str(names[0]))}, …), "
            f"its first pair is {shown(first[0])} and {shown(first[1])}: expected identities as "
            "the data has them"
        )
    known = codes[(codes >= 0).all(axis=1)]
    return KnownPairs(listed, known, len(codes) - len(known))


def ignored_rows(listed: IdentityPairs, identities: Identities) -> tuple[KnownPairs, np.ndarray]:
    """The pairs among those of a file of identities, and which of its rows they are, bool [P].

    Raises:
      UserError: as `pairs_among`.
    """
    if identities.names is not None:
        known = pairs_among(listed, identities.names)
        return known, between(identities.codes, known.codes)
    values = np.unique(identities.codes)
    known = pairs_among(listed, values)
    return known, between(identities.codes, values[known.codes])


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are neither comments nor blank, with their numbers."""
    numbered = [entry for block in text_blocks(path) for entry in block.lines()]
    return [
        (number, line.decode())
        for number, line in numbered
        if line.strip() and not line.lstrip().startswith(b"#")
    ]


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in split_fields(line.encode(), delimiter)]
    except csv.Error:
        return [line]


def _parse(
    fields: Sequence[str], columns: dict[str, int] | None, where: str
) -> tuple[tuple[str, str], bool]:
    """A line's pair, and whether it is left out."""
    wanted = 2 if columns is None else len(columns)
    if len(fields) != wanted:
        listed = ", ".join(map(shown, fields[:4])) + ", …" * (len(fields) > 4)
        hint = "" if columns else ", or a first line of columns identity_1, identity_2, …"
        raise UserError(
            f"{where}: {listed} are {len(fields)} fields, expected {wanted}"
            + (" identities" if columns is None else " as in the first line")
            + hint
        )
    first, second = fields if columns is None else (fields[columns[name]] for name in COLUMNS)
    if not first or not second:
        raise UserError(f"{where}: an identity is empty, expected two")
    first, second = canonical(first), canonical(second)
    if first == second:
        raise UserError(f"{where}: {shown(first)} is named twice, expected two identities")
    if columns is None or DECISION not in columns:
        return (first, second), True
    decision = fields[columns[DECISION]].lower()
    if decision not in DECISIONS:
        known = ", ".join(word for word in DECISIONS if word)
        raise UserError(
            f"{where}: the decision is {shown(decision)}, expected {known}, or nothing yet"
        )
    return (first, second), DECISIONS[decision]
