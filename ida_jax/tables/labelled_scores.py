"""Readers of what is known of pairs, one row per pair: scores, labels, groups and identities.

P pairs. A file is .npy, .csv, .tsv or .parquet, or a folder of the last. Fields of text are
separated by tabs where its first line has one, else by commas. That line is a header unless its
fields are all numbers (or true, false). A file of one column needs no name for it; of several,
the named one is read. The whole column is held in memory.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import not_whole
from ida_jax.tables.blocks import one_line, open_npy
from ida_jax.tables.parquet_files import (
    ParquetLayout,
    parquet_layout,
    require_table,
    table_suffix,
)
from ida_jax.tables.text import (
    canonical,
    delimiter_of,
    first_not_text,
    require_closed_quotes,
    shown,
    split_fields,
    text_blocks,
)

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = (".csv", ".tsv")
_SUFFIXES = (".npy", *_TEXTS, ".parquet")


class Groups(NamedTuple):
    """The group of each pair, face or name.

    Attributes:
      codes: int32 [N], places in `names`; −1 without a group.
      names: the groups' names, in ascending order.
    """

    codes: np.ndarray
    names: tuple[str, ...]


class Identities(NamedTuple):
    """The identities of both sides of pairs.

    Attributes:
      codes: int [P, 2].
      names: the identities' names, of which a code is the place; None where the codes are the
        identities that the file holds.
    """

    codes: np.ndarray
    names: list[str] | None

    def named(self) -> tuple[np.ndarray, list[str]]:
        """Codes from 0 and the names of all identities, numbers as text."""
        if self.names is not None:
            return self.codes, self.names
        values, codes = np.unique(self.codes, return_inverse=True)
        return codes.reshape(-1, 2), [str(value) for value in values.tolist()]


def read_scores(path: str | os.PathLike[str]) -> np.ndarray:
    """Floating point [P] from a column `score`; a missing one is NaN."""
    column = _numeric(Path(path), "score", what="scores")
    if column.dtype == bool or not np.issubdtype(column.dtype, np.number):
        raise UserError(f"{path} holds {_kind(column)}: expected numbers, one score per pair")
    if np.issubdtype(column.dtype, np.complexfloating):
        raise UserError(f"{path} holds complex numbers: expected one real score a pair")
    return column if np.issubdtype(column.dtype, np.floating) else column.astype(np.float64)


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """bool [P] from a column `label`: 1 or true for a pair of one person, 0 or false for two.

    Raises:
      UserError: as `read_scores`, or a label that is neither; the first is named by its number.
    """
    column = _numeric(Path(path), "label", what="labels")
    if column.dtype == bool:
        return column
    if not np.issubdtype(column.dtype, np.number):
        raise UserError(f"{path} holds {_kind(column)}: expected 0 or 1, one label per pair")
    wrong = np.flatnonzero((column != 0) & (column != 1))
    if wrong.size:
        raise UserError(
            f"{path}: the label of pair {wrong[0]} (from 0) is {column[wrong[0]]}, expected 1 for "
            "a pair of one person and 0 for one of two"
        )
    return column == 1


def read_groups(path: str | os.PathLike[str]) -> Groups:
    """The group of each pair, a name or an integer, from a column `group`.

    Raises:
      UserError: as `read_scores`.
    """
    path = Path(path)
    column = _column(path, "group", what="groups")
    if path.suffix.lower() in _TEXTS:
        column = _whole(column)
    if _is_float(column):
        raise UserError(f"{path} holds {column.type} values: expected a name or an integer a pair")
    values, codes = _numbered(column)
    order = np.argsort(values)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return Groups(place[codes], tuple(str(values[i]) for i in order))


def read_named_identities(path: str | os.PathLike[str]) -> Identities:
    """The identities of both sides of each pair, and their names where they have any.

    The columns are the file's only two, or those named `identity_1` and `identity_2`.

    Raises:
      UserError: as `read_scores`, or neither integers nor names.
    """
    import pyarrow as pa

    path = Path(path)
    suffix = table_suffix(path, _SUFFIXES, what="identities")
    if suffix == ".npy":
        array = np.asarray(open_npy(path, what="identities"))
        if array.ndim != 2 or array.shape[1] != 2:
            raise UserError(
                f"{path} is {array.dtype} {list(array.shape)}: expected [P, 2], the identities of "
                "both sides of each pair"
            )
        if np.issubdtype(array.dtype, np.integer):
            return Identities(array, None)
        sides = [_chunked(np.ascontiguousarray(array[:, side]), path) for side in (0, 1)]
    else:
        table = _table(path, suffix, what="identities")
        if table.num_columns != 2:
            names = ["identity_1", "identity_2"]
            _require_columns(path, table, names)
            table = table.select(names)
        sides = list(table.columns)
    for side in sides:
        _require_all(side, path)
    if suffix in _TEXTS:
        sides = [_whole(side) for side in sides]
    for side in sides:
        if _is_float(side):
            raise UserError(f"{path} holds {side.type} values: expected names or integers")
    if all(pa.types.is_integer(side.type) for side in sides):
        return Identities(np.stack([side.to_numpy() for side in sides], axis=1), None)
    encoded = [_encoded(side, pa.string()) for side in sides]
    chunks = [chunk for side in encoded for chunk in side.chunks]
    both = pa.chunked_array(chunks, type=encoded[0].type)
    names, codes = _numbered(both)
    return Identities(np.ascontiguousarray(codes.reshape(2, -1).T), [str(name) for name in names])


class _Numbered(NamedTuple):
    """The distinct values, and each row's place in them, int32."""

    values: np.ndarray
    codes: np.ndarray


def _numbered(column: "pa.ChunkedArray") -> _Numbered:
    """By hashing, without an object for each row."""
    chunks = _encoded(column).unify_dictionaries().chunks
    if not chunks:
        return _Numbered(np.empty(0, str), np.empty(0, np.int32))
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    values = chunks[0].dictionary.to_numpy(zero_copy_only=False)
    if values.dtype == object:  # names, of which some may be one
        values, place = np.unique([canonical(name) for name in values], return_inverse=True)
        codes = place.astype(np.int32)[codes]
    return _Numbered(values, codes)


def _encoded(column: "pa.ChunkedArray", kind: "pa.DataType | None" = None) -> "pa.ChunkedArray":
    """As int32 places in dictionaries, of values of the given kind or of their own."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        kind = kind or column.type.value_type
        if column.type == pa.dictionary(pa.int32(), kind):
            return column
        column = column.cast(column.type.value_type)
    return (column if kind is None else column.cast(kind)).dictionary_encode()


def _numeric(path: Path, name: str, *, what: str) -> np.ndarray:
    """A column as NumPy has it; missing scores are NaN."""
    import pyarrow as pa

    if path.suffix.lower() == ".npy":
        return _npy_column(path, what=what)
    column = _column(path, name, what=what)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_numpy()


def _npy_column(path: Path, *, what: str) -> np.ndarray:
    array = np.asarray(open_npy(path, what=what))
    if array.ndim != 1:
        raise UserError(f"{path} is {array.dtype} {list(array.shape)}: expected [P], one per pair")
    return array


def _column(path: Path, name: str, *, what: str) -> "pa.ChunkedArray":
    suffix = table_suffix(path, _SUFFIXES, what=what)
    if suffix == ".npy":
        return _chunked(_npy_column(path, what=what), path)
    table = _table(path, suffix, what=what)
    if table.num_columns != 1:
        _require_columns(path, table, [name])
    column = table.column(0) if table.num_columns == 1 else table[name]
    if what != "scores":
        _require_all(column, path)
    return column


def _chunked(array: np.ndarray, path: Path) -> "pa.ChunkedArray":
    import pyarrow as pa

    try:
        return pa.chunked_array([pa.array(array)])
    except pa.ArrowException as error:
        raise UserError(f"{path} holds {array.dtype} values: {one_line(error)}") from error


def _whole(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """Whole numbers that were written as floating point (np.savetxt) as integers; others as is."""
    import pyarrow as pa

    try:
        return column.cast(pa.int64()) if _is_float(column) else column
    except pa.ArrowException:
        return column


def _is_float(column: "pa.ChunkedArray") -> bool:
    import pyarrow as pa

    return pa.types.is_floating(column.type)


def _table(path: Path, suffix: str, *, what: str) -> "pa.Table":
    require_table(path, what=what)
    if suffix in _TEXTS:
        return _text_table(path)
    layout = parquet_layout(path, what=what)
    table = _parquet_table(layout)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if (bad := first_not_text(column)) is not None:
            where = f"{path}: {shown(name)} of pair {bad} (from 0)"
            if path.is_dir():
                where = f"{layout.place(bad)}: {shown(name)}"
            raise UserError(f"{where} is not UTF-8 text")
    return table


def _parquet_table(layout: ParquetLayout) -> "pa.Table":
    """All parts as one table."""
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for part in [part for part in layout.parts if part.rows] or layout.parts[:1]:
        try:
            # A folder's name K=3 above a file is not a column of the file.
            table = parquet.read_table(part.path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise not_whole(part.path, ".parquet file", error) from error
        for field in layout.partitions:
            column = pa.repeat(pa.scalar(part.keys[field.name], field.type), part.rows)
            table = table.append_column(field, column)
        tables.append(table.replace_schema_metadata(None))
    names = tables[0].column_names
    return tables[0] if len(tables) == 1 else pa.concat_tables(t.select(names) for t in tables)


def _text_table(path: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import csv

    text = b"".join(block.text for block in text_blocks(path))
    first = text.partition(b"\n")[0]
    require_closed_quotes(path, 1, first)
    delimiter = delimiter_of(first)
    header = not all(_is_value(field.strip()) for field in split_fields(first, delimiter))
    fault = "a quote or carriage return splits or joins lines"
    try:
        table = csv.read_csv(
            pa.py_buffer(text),
            read_options=csv.ReadOptions(autogenerate_column_names=not header),
            # An empty line among single scores is a missing score, not nothing.
            parse_options=csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            # Each name is held once, not once a row.
            convert_options=csv.ConvertOptions(
                auto_dict_encode=True, auto_dict_max_cardinality=2**31 - 1
            ),
        )
        if table.num_rows + header == text.removesuffix(b"\n").count(b"\n") + 1:
            return table
    except pa.ArrowException as error:
        fault = one_line(error)
    for number, line in enumerate(text.split(b"\n"), 1):
        require_closed_quotes(path, number, line)
    raise UserError(f"{path} is not a whole {path.suffix} file: {fault}")


def _is_value(field: str) -> bool:
    if field.lower() in ("true", "false"):
        return True
    try:
        float(field)
    except ValueError:
        return False
    return True


def _require_columns(path: Path, table: "pa.Table", names: list[str]) -> None:
    if missing := [name for name in names if table.column_names.count(name) != 1]:
        found = ", ".join(shown(name) for name in table.column_names[:9])
        raise UserError(
            f"{path} has the columns {found}: expected one named {' and one named '.join(missing)}"
        )


def _require_all(column: "pa.ChunkedArray", path: Path) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise UserError(f"{path}: pair {row} (from 0) is empty, expected a value for each pair")


def _kind(column: np.ndarray) -> str:
    return "text" if column.dtype.kind in "OUS" else f"{column.dtype} values"
