"""Lists of pairs on disk: read by blocks, so that memory does not grow with the list.

P pairs, N faces.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.parts import seal
from ida_jax.tables.blocks import open_npy, read_rows
from ida_jax.tables.pair_keys import key_place, require_key
from ida_jax.tables.parquet_files import (
    parquet_batches,
    parquet_layout,
    part_files,
    require_table,
    table_suffix,
)
from ida_jax.tables.text import (
    TextBlock,
    canonical,
    canonical_column,
    delimiter_of,
    first_not_text,
    parse_columns,
    raise_first_fault,
    shown,
    split_fields,
    text_blocks,
    whole_number,
    without_header,
)

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 18
_INTEGER = re.compile(r"\s*-?[0-9]+\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[-+]?[0-9.]+(e[-+]?[0-9]+)?\s*", re.ASCII | re.IGNORECASE)
_NAMES_NEEDED = "names are looked up where the faces' names are given (--names)"
_LARGEST = 2**31 - 1
# Arrow hashes all names again for each block: with more names than this (measured) it loses to a
# dictionary, which takes the same time a pair however many there are.
_ARROW_NAMES = 100_000

# int32 [n, 2], and the share of the source that is done with them.
_Blocks = Iterator[tuple[np.ndarray, float]]


class PairFile:
    """Pairs of rows in an .npy file of integers [P, 2], which is never held in memory.

    Any integer type and byte order, saved by rows or by columns.

    Attributes:
      path: the file.
      count: P, at least 1.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header."""
        self.path = Path(path)
        self._array = _open_pairs(self.path)
        if not np.issubdtype(self._array.dtype, np.integer):
            hint = f"; {_NAMES_NEEDED}" if self._array.dtype.kind == "U" else ""
            raise UserError(f"{path} holds {self._array.dtype}: expected integers, rows{hint}")
        self.count = len(self._array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Pairs start … stop−1, int32 [stop − start, 2].

        Raises:
          UserError: a row that does not fit into int32, or a file that was truncated meanwhile.
        """
        pairs = read_rows(self._array, start, stop)
        if pairs.dtype != np.int32:
            self._refuse_outside(pairs, start, _LARGEST + 1)
        return pairs.astype(np.int32, copy=False)

    def check(self, rows: int, pairs: range | None = None) -> np.ndarray:
        """Reads some of the pairs once, all if None: which faces are in them, bool [rows].

        Raises:
          UserError: a pair outside 0 … rows−1; the first is named with its number, from 0.
        """
        used = np.zeros(rows, bool)
        pairs = range(self.count) if pairs is None else pairs
        for start in range(pairs.start, pairs.stop, _BLOCK):
            block = read_rows(self._array, start, min(start + _BLOCK, pairs.stop))
            self._refuse_outside(block, start, rows)
            used[block.ravel()] = True
        return used

    def _refuse_outside(self, pairs: np.ndarray, start: int, rows: int) -> None:
        bad = _first_outside(pairs[:, 0], pairs[:, 1], rows)
        if bad is not None:
            raise UserError(
                f"{self.path}, pair {start + bad}: "
                f"{_outside(str(pairs[bad, 0]), str(pairs[bad, 1]), rows)}"
            )


def source_size(source: Path) -> int:
    """Bytes of a list, or of a folder's parts."""
    return sum(path.stat().st_size for path in part_files(source))


def convert_pairs(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rows: int,
    names: Sequence[str] | None = None,
    key: str | None = None,
    progress: Callable[[int], object] | None = None,
    sealed: bool = False,
) -> None:
    """Turns a list of pairs into an int32 .npy file [P, 2] of rows, whole or not at all.

    The source is .csv, .tsv or .parquet with two columns, a folder of the last, or .npy [P, 2].
    Integers in .parquet and
    .npy are rows, strings there are names. The fields of text are names where `names` are given and
    rows otherwise; a tab separates them where the first line has one, else a comma, or a blank
    between two numbers. Its first line is a header if no field in it is empty, a number or a
    known name; among names, where such a line may be a pair of two unknown ones, stderr says so.

    Args:
      rows: N; a pair's rows lie in 0 … N−1.
      names: the N faces' names in the rows' order; needed where the pairs are names.
      key: a third column, beside the pairs (`ida_jax.tables.pair_keys`).
      progress: called with how many bytes of the source were read since the last call.
      sealed: with a checksum behind the pairs (`ida_jax.common.parts.seal`).

    Raises:
      UserError: a source that is absent, damaged or empty, or has other columns; the first pair
        that is not two integers, not two known names or out of range, named by its line (text, from
        1, the header counted) or its number (from 0); an output that cannot be written.
    """
    source = Path(source)
    suffix = table_suffix(source, (".npy", ".csv", ".tsv", ".parquet"), what="pairs")
    require_table(source, what="pairs")
    if names is not None and len(names) != rows:
        raise UserError(f"{len(names)} names for {rows} faces: expected one each")
    lookup = None if names is None else _Names(names)
    if suffix == ".npy":
        blocks = _npy_pairs(source, rows, lookup)
    elif suffix == ".parquet":
        blocks = _parquet_pairs(source, rows, lookup, key)
    else:
        blocks = _text_pairs(source, rows, lookup, key)
    size = source_size(source)
    count = reported = 0
    with written_whole(output) as temporary:
        with temporary.open("wb") as file:
            _write_header(file, count)
            for pairs, share in blocks:
                file.write(np.ascontiguousarray(pairs, "<i4"))
                count += len(pairs)
                if progress is not None:
                    progress(int(share * size) - reported)
                    reported = int(share * size)
            if not count:
                raise UserError(f"{source} holds no pairs")
            file.seek(0)
            _write_header(file, count)
        if sealed:
            seal(temporary)


class _Names:
    """The faces' names, to be looked up a block at a time."""

    def __init__(self, names: Sequence[str]) -> None:
        import pyarrow as pa

        names = [canonical(name) for name in names]
        self.column = pa.array(names, pa.string())
        self.known = {name: row for row, name in enumerate(names)}

    def rows(self, column: "pa.Array | pa.ChunkedArray") -> np.ndarray:
        """The rows of names; −1 for an unknown one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = canonical_column(column.cast(pa.string()))
        if len(self.known) <= _ARROW_NAMES:
            positions = pc.index_in(column, value_set=self.column)
            return pc.fill_null(positions, -1).to_numpy()
        rows = (self.known.get(name, -1) for name in column.to_pylist())
        return np.fromiter(rows, np.int32, len(column))


def name_lookup(names: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """A function of names [n] to the faces' rows, int32 [n]; −1 of an unknown one.

    Args:
      names: the N faces' names in the rows' order.
    """
    import pyarrow as pa

    lookup = _Names(names)
    return lambda column: lookup.rows(pa.array(column, pa.string())).astype(np.int32)


def _write_header(file: BinaryIO, count: int) -> None:
    # NumPy leaves room for a longer count, so that the header can be written again in its place.
    header = {"descr": "<i4", "fortran_order": False, "shape": (count, 2)}
    np.lib.format.write_array_header_1_0(file, header)


def _open_pairs(path: Path) -> np.memmap:
    array = open_npy(path, what="pairs")
    if array.ndim != 2 or array.shape[1] != 2:
        turned = "; save its transpose" if array.ndim == 2 and array.shape[0] == 2 else ""
        raise UserError(
            f"{path} is {array.dtype} {list(array.shape)}: expected [P, 2], one pair a row{turned}"
        )
    if not len(array):
        raise UserError(f"{path} holds no pairs")
    return array


def _text_pairs(source: Path, rows: int, names: _Names | None, key: str | None) -> _Blocks:
    size, delimiter, place = source.stat().st_size, "", None

    def pair_of(fields: list[str]) -> list[str]:
        return fields if place is None else fields[:place] + fields[place + 1 :]

    for block in text_blocks(source):
        if not delimiter:
            first = block.text.partition(b"\n")[0]
            delimiter = delimiter_of(first)
            spaced = names is None and key is None and delimiter.encode() not in first
            if spaced and _is_numbers(first.decode().split()):
                delimiter = " "  # np.savetxt's own
            if key is not None:
                place = key_place(source, split_fields(first, delimiter), key)
        block = without_header(
            source,
            block,
            delimiter,
            lambda fields: key is not None or _skips(source, fields, names),
        )
        if not block.text:
            continue
        columns = _parsed(block, delimiter, names, place)
        pairs = None if columns is None else _as_rows(columns, names)
        if pairs is None or _first_outside(*pairs, rows) is not None:
            raise_first_fault(
                source, block, delimiter, lambda fields: _fault(pair_of(fields), rows, names)
            )
        yield np.stack([side.astype(np.int32) for side in pairs], axis=1), block.read / size


def _parsed(
    block: TextBlock, delimiter: str, names: _Names | None, key: int | None
) -> Sequence | None:
    """Two columns of names or of numbers; None where a line is not two of them.

    Args:
      key: the place of a column between them that is left out; None for none.
    """
    import pyarrow as pa

    def parsed(kind: "pa.DataType") -> list | None:
        kinds = [kind, kind]
        if key is None:
            return parse_columns(block, delimiter, kinds)
        kinds.insert(key, pa.string())
        columns = parse_columns(block, delimiter, kinds)
        return columns and columns[:key] + columns[key + 1 :]

    if names is not None:
        return parsed(pa.string())
    return parsed(pa.int32()) or parsed(pa.float64())


def _is_numbers(fields: list[str]) -> bool:
    return len(fields) == 2 and all(_NUMBER.fullmatch(field) for field in fields)


def _parquet_pairs(source: Path, rows: int, names: _Names | None, key: str | None) -> _Blocks:
    from pyarrow import types

    layout = parquet_layout(source, what="pairs")
    if key is not None:
        require_key(layout, key)
    fields = [field for field in layout.schema if field.name != key]
    if len(fields) != 2:
        columns = ", ".join(layout.schema.names)
        third = f", beside {key}" if key is not None else " (--key=COLUMN is for a third)"
        raise UserError(f"{source} has the columns {columns}: expected two, one pair a row{third}")
    kinds = [f.type.value_type if types.is_dictionary(f.type) else f.type for f in fields]
    if all(types.is_integer(kind) for kind in kinds):
        names = None
    elif not all(types.is_string(kind) or types.is_large_string(kind) for kind in kinds):
        raise UserError(
            f"{source} has columns of {kinds[0]} and {kinds[1]}: expected integers or names"
        )
    elif names is None:
        raise UserError(f"{source} holds names: {_NAMES_NEEDED}")
    done = 0
    for batch in parquet_batches(source, [field.name for field in fields], rows=_BLOCK):
        pairs = _checked_columns(
            source, done, batch.columns, rows, names, layout.place if source.is_dir() else None
        )
        done += len(pairs)
        yield pairs, done / layout.rows


def _npy_pairs(source: Path, rows: int, names: _Names | None) -> _Blocks:
    import pyarrow as pa

    array = _open_pairs(source)
    if array.dtype.kind != "U" or names is None:
        listed = PairFile(source)
        listed.check(rows)
    for start in range(0, len(array), _BLOCK):
        stop = min(start + _BLOCK, len(array))
        if array.dtype.kind == "U":
            block = read_rows(array, start, stop)
            columns = [pa.array(np.ascontiguousarray(block[:, side])) for side in (0, 1)]
            pairs = _checked_columns(source, start, columns, rows, names)
        else:
            pairs = listed.read(start, stop)
        yield pairs, stop / len(array)


def _checked_columns(
    source: Path,
    start: int,
    columns: Sequence["pa.Array"],
    rows: int,
    names: _Names | None,
    place: Callable[[int], str] | None = None,
) -> np.ndarray:
    """The pairs, int32 [n, 2], that two columns stand for.

    Args:
      start: the first one's number.
      place: where a pair is, in words, by its number; None where the source is one file.
    """

    def at(pair: int) -> str:
        return f"{source}, pair {start + pair}" if place is None else place(start + pair)

    for column in columns:
        if (bad := first_not_text(column)) is not None:
            raise UserError(f"{at(bad)}: its name is not UTF-8 text")
    pairs = _as_rows(columns, names)
    bad = _first_outside(*pairs, rows)
    if bad is not None:
        values = [column[bad].as_py() for column in columns]
        fields = ["" if value is None else str(value) for value in values]
        raise UserError(f"{at(bad)}: {_fault(fields, rows, names)}")
    return np.stack([side.astype(np.int32, copy=False) for side in pairs], axis=1)


def _as_rows(columns: Sequence, names: _Names | None) -> list[np.ndarray]:
    """Two columns as rows of the embeddings; −1 for an unknown name and for what is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if names is not None:
        return [names.rows(column) for column in columns]
    if all(pa.types.is_floating(column.type) for column in columns):
        return [_whole_rows(column.to_numpy()) for column in columns]
    if any(column.type != pa.int32() for column in columns):
        # What int64 cannot hold becomes negative, and is refused as such.
        columns = [column.cast(pa.int64(), safe=False) for column in columns]
    return [pc.fill_null(column, -1).to_numpy() for column in columns]


def _whole_rows(values: np.ndarray) -> np.ndarray:
    """Floating point as int64; −1 where it is not a row."""
    good = (values >= 0) & (values <= _LARGEST) & (values == np.floor(values))
    return np.where(good, values, -1).astype(np.int64)


def _first_outside(first: np.ndarray, second: np.ndarray, rows: int) -> int | None:
    if all(side.min(initial=0) >= 0 and side.max(initial=0) < rows for side in (first, second)):
        return None
    return int(np.argmax((first < 0) | (first >= rows) | (second < 0) | (second >= rows)))


def _is_header(fields: list[str], names: _Names | None) -> bool:
    if not all(field.strip() for field in fields):
        return False
    known = frozenset() if names is None else names.known
    return not any(canonical(field) in known or _NUMBER.fullmatch(field) for field in fields)


def _skips(source: Path, fields: list[str], names: _Names | None) -> bool:
    """Whether the first line is a header; among names it is reported, since it may be a pair."""
    skipped = _is_header(fields, names)
    if skipped and names is not None:
        listed = ", ".join(shown(field) for field in fields[:5])
        print(f"{source}, line 1 ({listed}) is taken for a header", file=sys.stderr)
    return skipped


def _fault(fields: list[str], rows: int, names: _Names | None) -> str | None:
    """What is wrong with a pair's two fields, None if nothing is."""
    if not any(field.strip() for field in fields):
        return "empty, expected the two fields of a pair"
    if len(fields) != 2:
        found = ", ".join(shown(field) for field in fields[:5]) + ", …" * (len(fields) > 5)
        return f"found {found}; expected the two fields of a pair"
    for field in fields:
        if names is not None and canonical(field) in names.known:
            continue
        if not field.strip():
            return "one field is empty, expected two"
        if names is not None:
            rows_too = "; rows come as .npy or .parquet where faces have names"
            hint = rows_too if _INTEGER.fullmatch(field) else ""
            return f"no face is named {shown(field)}{hint}"
        if whole_number(field) is None:
            hint = "" if _NUMBER.fullmatch(field) else f"; {_NAMES_NEEDED}"
            return f"{shown(field)} is not an integer, expected a row of the embeddings{hint}"
    if names is None and not all(0 <= whole_number(field) < rows for field in fields):
        return _outside(*fields, rows)
    return None


def _outside(first: str, second: str, rows: int) -> str:
    pair = f"({first.strip()[:20]}, {second.strip()[:20]})"
    return f"{pair} is outside the {rows} faces (0 … {rows - 1})"
