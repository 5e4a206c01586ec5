"""The key column of a list of pairs: read beside the pairs, and written beside their scores.

P pairs.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ida_jax.common.errors import UserError
from ida_jax.tables.parquet_files import ParquetLayout, is_parquet, parquet_batches, parquet_layout
from ida_jax.tables.text import (
    delimiter_of,
    first_not_text,
    parse_columns,
    raise_first_fault,
    shown,
    split_fields,
    text_blocks,
    without_header,
)

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 18


class KeyColumn:
    """A list's keys, taken block by block in the pairs' order.

    Attributes:
      name: the column's.
      kind: an integer type or string.
    """

    def __init__(self, source: Path, name: str) -> None:
        """Raises:
        UserError: a source without such a column, or one of another type.
        """
        import pyarrow as pa

        if name == "score":
            raise UserError("--key=score would stand beside the scores' own column: rename it")
        self.name = name
        if is_parquet(source):
            layout = parquet_layout(source, what="pairs")
            self.kind = require_key(layout, name)
            self._blocks = _parquet_keys(layout, name, self.kind)
        elif source.suffix.lower() in (".csv", ".tsv"):
            self.kind, self._blocks = pa.string(), _text_keys(source, name)
        else:
            raise UserError(
                f"--key={name}: {source} has no named columns; give pairs in .csv, .tsv or .parquet"
            )
        self._rest = pa.array([], self.kind)

    def take(self, count: int) -> "pa.Array":
        """The next `count` keys.

        Raises:
          UserError: a key that is missing, named by its place; a source that became shorter.
        """
        import pyarrow as pa

        blocks = [self._rest]
        while sum(map(len, blocks)) < count:
            block = next(self._blocks, None)
            if block is None:
                raise UserError(f"--key={self.name}: the pairs became fewer while they were read")
            blocks.append(block)
        keys = pa.concat_arrays(blocks)
        self._rest = keys[count:]
        return keys[:count]


def require_key(layout: ParquetLayout, name: str) -> "pa.DataType":
    """The type of a key column: an integer one, or string."""
    import pyarrow as pa
    from pyarrow import types

    fields = [field for schema in (layout.schema, layout.partitions) for field in schema]
    kinds = {field.name: field.type for field in fields}
    if name not in kinds:
        raise UserError(
            f"--key={name}: {layout.path} has the columns {', '.join(kinds)}: name one of them"
        )
    kind = kinds[name]
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(kind) or types.is_large_string(kind):
        return pa.string()
    if not types.is_integer(kind):
        raise UserError(f"--key={name}: it is {kind} in {layout.path}, expected integers or text")
    return kind


def key_place(source: Path, header: Sequence[str], name: str) -> int:
    """The place of the key column among the three of a list in text.

    Args:
      header: the fields of the first line.
    """
    fields = [field.strip() for field in header]
    if len(fields) != 3 or fields.count(name) != 1:
        found = ", ".join(shown(field) for field in fields[:5])
        raise UserError(
            f"{source}, line 1: found {found}; --key={name} needs a header of three columns, one "
            f"of them {name}"
        )
    return fields.index(name)


def _parquet_keys(layout: ParquetLayout, name: str, kind: "pa.DataType") -> Iterator["pa.Array"]:
    done = 0
    for batch in parquet_batches(layout.path, [name], rows=_BLOCK):
        column = batch.column(0)
        if column.null_count:
            bad = column.is_null().index(True).as_py()
            raise UserError(f"{layout.place(done + bad)}: its {name} is empty, expected a key")
        if (bad := first_not_text(column)) is not None:
            raise UserError(f"{layout.place(done + bad)}: its {name} is not UTF-8 text")
        yield column.cast(kind)
        done += len(column)


def _text_keys(source: Path, name: str) -> Iterator["pa.Array"]:
    import pyarrow as pa
    import pyarrow.compute as pc

    delimiter, place = "", 0
    for block in text_blocks(source):
        if not delimiter:
            first = block.text.partition(b"\n")[0]
            delimiter = delimiter_of(first)
            place = key_place(source, split_fields(first, delimiter), name)
        block = without_header(source, block, delimiter, lambda fields: True)
        if not block.text:
            continue
        columns = parse_columns(block, delimiter, (pa.string(),) * 3)
        if columns is None or pc.any(pc.equal(columns[place], "")).as_py():
            raise_first_fault(source, block, delimiter, partial(_fault, place=place, name=name))
        yield columns[place].combine_chunks()


def _fault(fields: list[str], *, place: int, name: str) -> str | None:
    if len(fields) != 3:
        found = ", ".join(shown(field) for field in fields[:5])
        return f"found {found}; expected the two fields of a pair and its {name}"
    return None if fields[place] else f"its {name} is empty, expected a key"
