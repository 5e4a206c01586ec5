"""What the readers of embeddings, pairs and scores share: .npy and Parquet.

Whatever is read comes in blocks, so that memory does not grow with the file.
"""

import os
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file, require_plausible

if TYPE_CHECKING:
    import pyarrow as pa


def known_suffix(path: Path, allowed: Sequence[str], *, what: str) -> str:
    """The file's suffix in lower case.

    Raises:
      UserError: a suffix that is not one of those allowed.
    """
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise UserError(
            f"{path} ends in '{path.suffix}': {what} are one of {', '.join(allowed)} files"
        )
    return suffix


def one_line(error: Exception) -> str:
    """A library's message without its line breaks."""
    return " ".join(str(error).split())


def open_npy(path: Path, *, what: str) -> np.memmap:
    """The array of an .npy file as a read-only map; no page of it is read yet.

    Raises:
      UserError: no such file, a truncated one, one of pickled objects, or not an .npy file.
    """
    require_file(path, what=what)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, OverflowError, TypeError, SyntaxError, MemoryError, RecursionError,
            tokenize.TokenError) as error:  # fmt: skip
        raise UserError(f"{path} is not a whole .npy file: {one_line(error)}") from error


def read_rows(array: np.memmap, start: int, stop: int) -> np.ndarray:
    """Rows start … stop−1 of a map [P, 2], read from its file.

    The pages that a map has touched count as resident memory, and would grow with the file; what is
    read belongs to the caller. Both orders are read: `np.array([i, j]).T` is saved by columns.

    Raises:
      UserError: the file was truncated or became unreadable since it was opened.
    """
    count, size = stop - start, array.dtype.itemsize

    def read(first: int, entries: int) -> np.ndarray:
        try:
            values = np.fromfile(
                array.filename, array.dtype, entries, offset=array.offset + first * size
            )
        except OSError as error:
            raise UserError(f"cannot read {array.filename}: {one_line(error)}") from error
        if len(values) != entries:
            raise UserError(f"{array.filename} was truncated while it was read")
        return values

    if array.flags.c_contiguous:
        return read(2 * start, 2 * count).reshape(count, 2)
    return np.stack([read(start, count), read(len(array) + start, count)], axis=1)


class ParquetLayout(NamedTuple):
    """What a Parquet file holds.

    Attributes:
      schema: its columns.
      rows: their length.
    """

    schema: "pa.Schema"
    rows: int


def parquet_layout(path: str | os.PathLike[str], *, what: str) -> ParquetLayout:
    """Reads a Parquet file's footer.

    Raises:
      UserError: no such file, not a whole Parquet file, or a small one that promises very much.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(path)
    require_file(path, what=what)
    try:
        metadata = parquet.read_metadata(path)
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        sizes = [group.total_byte_size for group in groups]
        layout = ParquetLayout(metadata.schema.to_arrow_schema(), metadata.num_rows)
    # A footer that is not Unicode raises UnicodeDecodeError.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {one_line(error)}") from error
    # Equal rows take next to no room: sorted labels of 13.5 M pairs are a few KiB.
    require_plausible(path, max(sum(sizes), layout.rows // 8))
    return layout


def parquet_batches(path: Path, columns: Sequence[str], *, rows: int) -> Iterator["pa.RecordBatch"]:
    """A Parquet file's columns by batches of at most `rows` rows.

    Raises:
      UserError: the file is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # A column's pages are read as they are needed, not a row group at once.
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
                if missing := set(columns) - set(batch.schema.names):
                    raise UserError(f"{path} is damaged: it lacks {len(missing)} of its columns")
                yield batch
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {one_line(error)}") from error
