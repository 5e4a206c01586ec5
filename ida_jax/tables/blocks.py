"""What the readers of embeddings, pairs and scores share: .npy, lines of text, Parquet.

Whatever is read comes in blocks, so that memory does not grow with the file.
"""

import csv
import os
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file

if TYPE_CHECKING:
    import pyarrow as pa

_TEXT_BLOCK = 8 << 20
_LONGEST_LINE = 1 << 20
_SHOWN = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
    except (ValueError, OSError, OverflowError, TypeError, tokenize.TokenError) as error:
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


class TextBlock(NamedTuple):
    """Whole lines of a text file.

    Attributes:
      first_line: the number of the first, from 1.
      text: the lines' bytes.
    """

    first_line: int
    text: bytes


def text_blocks(path: Path) -> Iterator[TextBlock]:
    """A text file's lines by blocks, without a byte order mark and blank lines at the end.

    Raises:
      UserError: the file cannot be read, or has a line of more than 1 MiB.
    """
    line, rest = 1, b""
    for chunk in _chunks(path):
        data = rest + chunk
        cut = data.rfind(b"\n") + 1
        if cut == len(data):
            # Blank lines here may be the file's last ones: they wait for what follows.
            lines = data.rstrip(b"\r\n")
            cut = data.find(b"\n", len(lines)) + 1 if lines else 0
        if cut:
            yield TextBlock(line, data[:cut])
            line += data.count(b"\n", 0, cut)
        rest = data[cut:]
        if len(rest) > _LONGEST_LINE:
            raise UserError(f"{path}, line {line}: longer than 1 MiB, not a list of lines")
    if rest := rest.rstrip(b"\r\n"):
        yield TextBlock(line, rest)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
                file.seek(0)
            while chunk := file.read(_TEXT_BLOCK):
                yield chunk
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def text_lines(path: Path, *, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file with their numbers from 1, without blank lines at the end.

    Raises:
      UserError: as `text_blocks`; no such file, or a line that is not UTF-8.
    """
    require_file(path, what=what)
    number = 0
    for block in text_blocks(path):
        for line in block.text.splitlines():
            number += 1
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number} is not UTF-8 text") from error
            yield number, text


def split_fields(line: bytes, delimiter: str) -> list[str]:
    """The fields of one line, quotes undone; bytes that are not UTF-8 show as \\xNN."""
    # The csv module refuses fields of more than 128 KiB; a message shows their beginning anyway.
    text = line[:_SHOWN].rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
    # The reader takes a carriage return within a line for its end.
    return next(csv.reader([text.replace("\r", "\\r")], delimiter=delimiter)) or [""]


def without_header(
    block: TextBlock, delimiter: str, is_header: Callable[[list[str]], bool]
) -> TextBlock:
    """The block without the file's first line where that one is a header."""
    if block.first_line > 1:
        return block
    header, _, text = block.text.partition(b"\n")
    return TextBlock(2, text) if is_header(split_fields(header, delimiter)) else block


def parse_columns(
    block: TextBlock, delimiter: str, types: Sequence["pa.DataType"]
) -> list["pa.ChunkedArray"] | None:
    """The block's columns, or None where a line is not one value of each type."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    names = [str(column) for column in range(len(types))]
    lines = block.text.count(b"\n") + (not block.text.endswith(b"\n"))
    try:
        table = pa_csv.read_csv(
            pa.py_buffer(block.text),
            read_options=pa_csv.ReadOptions(column_names=names),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict(zip(names, types, strict=True)), null_values=[]
            ),
        )
    except pa.ArrowException:
        return None
    # A lone carriage return, or a line break within quotes, is a line to one side only.
    return table.columns if table.num_rows == lines else None


def raise_first_fault(
    path: Path, block: TextBlock, delimiter: str, fault: Callable[[list[str]], str | None]
) -> None:
    """Raises UserError with the number of the first line that has a fault.

    Args:
      fault: says what is wrong with a line's fields; None where nothing is.
    """
    for number, line in enumerate(block.text.removesuffix(b"\n").split(b"\n"), block.first_line):
        message = fault(split_fields(line, delimiter))
        if message is not None:
            raise UserError(f"{path}, line {number}: {message}")
    raise UserError(
        f"{path}: a quote or carriage return in lines {block.first_line} to {number} splits or "
        "joins lines: write one line each"
    )


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
      UserError: no such file, or not a whole Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    require_file(Path(path), what=what)
    try:
        metadata = parquet.read_metadata(path)
        return ParquetLayout(metadata.schema.to_arrow_schema(), metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {one_line(error)}") from error


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
            yield from file.iter_batches(batch_size=rows, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {one_line(error)}") from error
