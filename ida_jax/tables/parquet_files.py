"""Parquet: a file, or a folder of them as Spark, Ray and others write it (a data set).

The rows of a folder are those of its parts in the order of their paths in it, as text, and within a
part in the file's order. What begins with "_" or "." is not a part (_SUCCESS, _committed_…, .crc),
nor is what lies in a folder of such a name. Folders named KEY=VALUE (hive partitions) add a column
KEY.

Whatever is read comes in blocks, so that memory does not grow with the file.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.errors import UserError
from ida_jax.common.files import not_whole, require_file, require_plausible
from ida_jax.tables.blocks import known_suffix

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 5


class Part(NamedTuple):
    """A file of Parquet.

    Attributes:
      path: the file.
      schema: the columns that it holds.
      rows: their length.
      keys: {partition column: its value for this file}.
    """

    path: Path
    schema: "pa.Schema"
    rows: int
    keys: Mapping[str, Any]


class ParquetLayout(NamedTuple):
    """What Parquet holds.

    Attributes:
      path: the file or folder.
      schema: the columns of the files, with the metadata of the first one.
      partitions: the columns that the folders' names add.
      rows: of all parts.
      parts: in order; one where the path is a file.
    """

    path: Path
    schema: "pa.Schema"
    partitions: "pa.Schema"
    rows: int
    parts: tuple[Part, ...]

    def place(self, row: int) -> str:
        """Where a row is, in words: the file and the row in it, from 0."""
        ends = list(accumulate(part.rows for part in self.parts))
        number = next(i for i, end in enumerate(ends) if row < end)
        part = self.parts[number]
        return f"{part.path}, row {row - ends[number] + part.rows}"

    def metadata(self, key: str) -> str:
        """An entry of the parts' metadata, "" where a part has none."""
        values = {}
        for part in self.parts:
            value = (part.schema.metadata or {}).get(key.encode(), b"").decode("utf-8", "replace")
            values.setdefault(value, part.path)
        if len(values) > 1:
            (first, one), (second, other), *_ = values.items()
            raise UserError(
                f"{one} has the {key} {first or 'of none'}, {other} {second or 'that of none'}: "
                "expected one in all parts"
            )
        return next(iter(values))


def row_place(path: str | os.PathLike[str]) -> Callable[[int], str] | None:
    """`ParquetLayout.place` of a folder; None of a file, whose own rows' numbers say enough."""
    path = Path(path)
    # Read when it is asked for: a folder may have thousands of footers.
    return (lambda row: parquet_layout(path, what="table").place(row)) if path.is_dir() else None


def is_parquet(path: Path) -> bool:
    """Whether a path is read as Parquet: by its suffix, or as a folder of parts."""
    return path.suffix.lower() == ".parquet" or path.is_dir()


def table_suffix(path: Path, allowed: Sequence[str], *, what: str) -> str:
    """`known_suffix` of a file that is read; .parquet of a folder of parts, whatever its name."""
    return ".parquet" if path.is_dir() else known_suffix(path, allowed, what=what)


def require_table(path: Path, *, what: str) -> None:
    """Raises a UserError if there is neither a file nor a folder of parts at the path."""
    if path.is_dir():
        part_files(path, what=what)
    else:
        require_file(path, what=what)


def refuse_inside(output: Path, sources: Iterable[Path | None]) -> None:
    """Refuses an output in a folder of parts, where it would be read as one the next time."""
    real = Path(os.path.realpath(output))
    for source in sources:
        if source is not None and source.is_dir() and source.resolve() in real.parents:
            raise UserError(
                f"{output} lies in {source}, whose files are read as parts of one table: name "
                "another folder"
            )


def part_files(path: str | os.PathLike[str], *, what: str = "table") -> list[Path]:
    """The files of a Parquet file or folder, in the order of their rows."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = []
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if name[0] not in "._"]
        files += [Path(folder, name) for name in names if name[0] not in "._"]
    files.sort(key=lambda file: file.relative_to(path).as_posix())
    if others := [file for file in files if file.suffix.lower() != ".parquet"]:
        raise UserError(
            f"{path} is read as a folder of .parquet files, and holds {others[0].name}: name a "
            "folder that holds them alone, or the file"
        )
    if not files:
        raise UserError(f"no {what} at {path}: it is a folder without .parquet files")
    return files


def parquet_layout(path: str | os.PathLike[str], *, what: str) -> ParquetLayout:
    """Reads the footers of a Parquet file or of a folder's parts.

    Raises:
      UserError: no such file, not a whole Parquet file, or a small one that promises very much; a
        part with other columns than the first.
    """
    import pyarrow as pa

    path = Path(path)
    files = part_files(path, what=what)
    partitions, keys = _partitions(path, files) if path.is_dir() else (pa.schema([]), [{}])
    parts = [_part(file, key, what) for file, key in zip(files, keys, strict=True)]
    # What Spark and pandas write of no rows may have columns of no type.
    filled = [part for part in parts if part.rows] or parts
    schema = filled[0].schema
    for part in filled[1:]:
        _require_same(filled[0], part)
    if both := set(schema.names) & set(partitions.names):
        raise UserError(
            f"{path}: {', '.join(sorted(both))} is a column of the files and a partition too: "
            "rename one of them"
        )
    return ParquetLayout(path, schema, partitions, sum(part.rows for part in parts), tuple(parts))


def parquet_batches(path: Path, columns: Sequence[str], *, rows: int) -> Iterator["pa.RecordBatch"]:
    """The columns of a Parquet file or folder by batches of at most `rows` rows, in order.

    Raises:
      UserError: a file is damaged.
    """
    import pyarrow as pa

    if not path.is_dir():
        yield from _file_batches(path, columns, rows=rows)
        return
    layout = parquet_layout(path, what="table")
    own = [name for name in columns if name not in layout.partitions.names]
    for part in layout.parts:
        if not part.rows:
            continue
        # Without a column of its own a file still says how many rows it has.
        for batch in _file_batches(part.path, own or part.schema.names[:1], rows=rows):
            arrays = [
                batch.column(name)
                if name in own
                else pa.repeat(pa.scalar(part.keys[name], layout.partitions.field(name).type),
                               len(batch))
                for name in columns
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _file_batches(path: Path, columns: Sequence[str], *, rows: int) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # A column's pages are read as they are needed, not a row group at once. Without
        # partitioning: a name such as K=3 above the file is not a column of it.
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
                if missing := set(columns) - set(batch.schema.names):
                    raise UserError(f"{path} is damaged: it lacks {len(missing)} of its columns")
                columns_stored = [getattr(column, "storage", column) for column in batch.columns]
                yield pa.RecordBatch.from_arrays(columns_stored, names=batch.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise not_whole(path, "Parquet file", error) from error


def _part(path: Path, keys: Mapping[str, Any], what: str) -> Part:
    import pyarrow as pa
    from pyarrow import parquet

    require_file(path, what=what)
    try:
        metadata = parquet.read_metadata(path)
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        sizes = [group.total_byte_size for group in groups]
        part = Part(path, _stored(metadata.schema.to_arrow_schema()), metadata.num_rows, keys)
    # A footer that is not Unicode raises UnicodeDecodeError.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise not_whole(path, "Parquet file", error) from error
    # Equal rows take next to no room: sorted labels of 13.5 M pairs are a few KiB.
    require_plausible(path, max(sum(sizes), part.rows // 8))
    return part


def _stored(schema: "pa.Schema") -> "pa.Schema":
    """With the types that are stored in place of extensions: Ray writes matrices as tensors."""
    import pyarrow as pa

    for number, field in enumerate(schema):
        if isinstance(field.type, pa.BaseExtensionType):
            schema = schema.set(number, pa.field(field.name, field.type.storage_type))
    return schema


def _partitions(path: Path, files: Sequence[Path]) -> tuple["pa.Schema", list[dict[str, Any]]]:
    """The partition columns, and their values for each file."""
    import pyarrow as pa
    from pyarrow import dataset, fs

    names = {
        part.partition("=")[0]
        for file in files
        for part in file.relative_to(path).parts[:-1]
        if "=" in part
    }
    if not names:
        return pa.schema([]), [{} for _ in files]
    options = dataset.FileSystemFactoryOptions(
        partition_base_dir=path.as_posix(), partitioning=dataset.HivePartitioning.discover()
    )
    try:
        found = dataset.FileSystemDatasetFactory(
            fs.LocalFileSystem(), [file.as_posix() for file in files],
            dataset.ParquetFileFormat(), options,
        ).finish()  # fmt: skip
    except (pa.ArrowException, OSError, ValueError) as error:
        raise not_whole(path, "folder of Parquet files", error) from error
    keys = {
        Path(fragment.path): dataset.get_partition_keys(fragment.partition_expression)
        for fragment in found.get_fragments()
    }
    schema = pa.schema([found.schema.field(name) for name in sorted(names)])
    for file in files:
        if missing := names - set(keys[file]):
            raise UserError(
                f"{file} lies in no folder {sorted(missing)[0]}=…, as other parts of {path} do"
            )
    return schema, [keys[file] for file in files]


def _require_same(first: Part, part: Part) -> None:
    one, other = ({field.name: field.type for field in p.schema} for p in (first, part))
    for name in [*one, *other]:
        if one.get(name) != other.get(name):
            raise UserError(
                f"{part.path}: column '{name}' is {other.get(name, 'absent')}, and "
                f"{one.get(name, 'absent')} in {first.path}: expected the same columns in all parts"
            )
