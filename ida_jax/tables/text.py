"""The one reader of lists in text: labels, identities, pairs, names, images, landmarks, tables.

Whatever an editor, a spreadsheet or NumPy adds is not part of a name: a byte order mark, CRLF,
blanks at a line's end, blank last lines, UTF-16, and the two forms in which Unicode writes an
accent (names are NFC). What is not text is refused with its line.

Lines come in blocks, so that memory does not grow with the file.
"""

import codecs
import csv
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file

if TYPE_CHECKING:
    import pyarrow as pa

_TEXT_BLOCK = 8 << 20
_LONGEST_LINE = 1 << 20
_SHOWN = 1 << 16
_BLANKS = b" \t\r\n"
# The longer mark of UTF-32 begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)
# np.savetxt writes 1 as 1.000000000000000000e+00.
_DECIMAL = re.compile(r"[-+]?[0-9]{1,40}(\.[0-9]{0,40})?(e[-+]?[0-9]{1,3})?", re.ASCII | re.I)


class TextBlock(NamedTuple):
    """Whole lines of a text file.

    Attributes:
      first_line: the number of the first, from 1.
      text: the lines in UTF-8, separated by a line feed.
      read: bytes of the file that were read so far.
    """

    first_line: int
    text: bytes
    read: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers."""
        return enumerate(self.text.removesuffix(b"\n").split(b"\n"), self.first_line)


def text_blocks(path: Path, *, normal: bool = True) -> Iterator[TextBlock]:
    """A text file's lines by blocks, without what editors add.

    Args:
      path: UTF-8; or UTF-16 or UTF-32 with a byte order mark.
      normal: letters in Unicode's form NFC; otherwise as they are, as paths of files must be.
    """
    line, rest, read = 1, b"", 0
    for chunk, read in _chunks(path):
        data = rest + chunk
        cut = data.rfind(b"\n") + 1
        if not data[cut:].strip(_BLANKS):
            # Blank lines here may be the file's last ones: they wait for what follows.
            lines = data[:cut].rstrip(_BLANKS)
            cut = data.find(b"\n", len(lines)) + 1 if lines else 0
        if cut:
            yield TextBlock(line, _clean(path, line, data[:cut], normal), read)
            line += data.count(b"\n", 0, cut)
        rest = data[cut:]
        if len(rest) > _LONGEST_LINE:
            raise UserError(f"{path}, line {line}: longer than 1 MiB, not a list of lines")
    if rest := rest.rstrip(_BLANKS):
        yield TextBlock(line, _clean(path, line, rest, normal), read)


def text_lines(path: Path, *, what: str, normal: bool = True) -> list[str]:
    """All lines of a text file; see `text_blocks`.

    Args:
      what: what an error says that is missing where there is no such file.
    """
    require_file(path, what=what)
    return [
        line.decode() for block in text_blocks(path, normal=normal) for _, line in block.lines()
    ]


def canonical(name: str) -> str:
    """A name as `text_blocks` gives it: NFC, without blanks at its end."""
    return name.rstrip() if name.isascii() else unicodedata.normalize("NFC", name).rstrip()


def canonical_column(column: "pa.Array | pa.ChunkedArray") -> "pa.Array | pa.ChunkedArray":
    """A column of strings, each as `canonical` has it."""
    import pyarrow.compute as pc

    return pc.utf8_rtrim_whitespace(pc.utf8_normalize(column, form="NFC"))


def first_not_text(column: "pa.Array | pa.ChunkedArray") -> int | None:
    """The first entry of a column of strings that is not UTF-8, as a Parquet file may hold them."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, entry in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                (entry or b"").decode()
            except UnicodeDecodeError:
                return row
        raise
    return None


def name_fault(name: str) -> str | None:
    """Why a name cannot stand on a line of a list; None where it can."""
    if not name:
        return "is empty, expected a name"
    if any(letter in name for letter in "\0\n\r"):
        return f"is {shown(name)}, with a NUL or a line break: expected a name of one line"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"is {shown(name)}, which is not Unicode text: expected a name"
    return None


def whole_number(text: str) -> int | None:
    """The whole number that a field holds, also where np.savetxt wrote it; None for others.

    Numbers of more than 41 digits, which Python may refuse to parse, are cut to 41: they are beyond
    any range either way.
    """
    text = text.strip()
    if _WHOLE.fullmatch(text):
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        return sign * int(digits.lstrip("0")[:41] or "0")
    if not _DECIMAL.fullmatch(text):
        return None
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else None


def split_line(line: str) -> list[str]:
    """A line's fields: between tabs where it has any, else between white space."""
    return [part.strip() for part in line.split("\t")] if "\t" in line else line.split()


def delimiter_of(line: bytes) -> str:
    """What separates the fields of a table whose first line this is: a tab, or else a comma."""
    return "\t" if b"\t" in line else ","


def split_fields(line: bytes, delimiter: str) -> list[str]:
    """The fields of one line, quotes undone."""
    # The csv module refuses fields of more than 128 KiB; a message shows their beginning anyway.
    text = line[:_SHOWN].decode("utf-8", errors="replace")
    # The reader takes a carriage return within a line for its end.
    return next(csv.reader([text.replace("\r", "\\r")], delimiter=delimiter)) or [""]


def without_header(
    path: Path, block: TextBlock, delimiter: str, is_header: Callable[[list[str]], bool]
) -> TextBlock:
    """The block without the file's first line where that one is a header.

    Raises:
      UserError: a quote on the first line has no end.
    """
    if block.first_line > 1:
        return block
    header, _, text = block.text.partition(b"\n")
    require_closed_quotes(path, 1, header)
    fields = split_fields(header, delimiter)
    return block._replace(first_line=2, text=text) if is_header(fields) else block


def require_closed_quotes(path: Path, number: int, line: bytes) -> None:
    """Raises UserError where a field begins with a quote that has no end on its line."""
    if line.count(b'"') % 2 and re.search(rb'(^|[,\t])"', line):
        text = shown(line.decode(errors="replace"))
        raise UserError(f"{path}, line {number}: a quote in {text} has no end: take it away")


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
    for number, line in block.lines():
        message = fault(split_fields(line, delimiter))
        if message is not None:
            raise UserError(f"{path}, line {number}: {message}")
    raise UserError(
        f"{path}: a quote or carriage return in lines {block.first_line} to {number} splits or "
        "joins lines: write one line each"
    )


def shown(text: str) -> str:
    """The beginning of a text in quotes, for a message."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Parts of the file in UTF-8 without its mark, and how many bytes were read so far."""
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_LINE)
            mark, encoding = next(
                (marked for marked in _MARKS if start.startswith(marked[0])), (b"", "utf-8")
            )
            if encoding != "utf-8":
                file.seek(0)
                yield from _decoded(path, file, encoding)
                return
            file.seek(len(mark))
            # Some editors end lines with a carriage return alone.
            returns = b"\r" in start and b"\n" not in start
            while chunk := file.read(_TEXT_BLOCK):
                yield chunk.replace(b"\r", b"\n") if returns else chunk, file.tell()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _decoded(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[bytes, int]]:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    while True:
        chunk = file.read(_TEXT_BLOCK)
        try:
            text = decoder.decode(chunk, final=not chunk).encode()
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(error.encoding, "replace").count("\n")
            raise UserError(
                f"{path}, line {line}: not {encoding.upper()} text, as the file's first bytes "
                "promise: save it as UTF-8"
            ) from error
        line += text.count(b"\n")
        yield text, file.tell()
        if not chunk:
            return


def _clean(path: Path, first_line: int, text: bytes, normal: bool) -> bytes:
    if b"\r" in text or b" \n" in text or b"\t\n" in text or text.endswith((b" ", b"\t")):
        text = b"\n".join(line.rstrip(b" \t\r") for line in text.split(b"\n"))
    if b"\0" in text:
        number, line = _line_around(text, text.index(b"\0"))
        raise UserError(
            f"{path}, line {first_line + number}: {shown(line)} holds a NUL byte: save the file as "
            "UTF-8 text"
        )
    if text.isascii():
        return text
    try:
        letters = text.decode()
    except UnicodeDecodeError as error:
        number, line = _line_around(text, error.start)
        raise UserError(
            f"{path}, line {first_line + number}: {shown(line)} is not UTF-8 text: save the file "
            "as UTF-8"
        ) from error
    # Files joined to one may bring marks of their own.
    letters = letters.replace("\ufeff", "")
    if normal and not unicodedata.is_normalized("NFC", letters):
        letters = unicodedata.normalize("NFC", letters)
    return letters.encode()


def _line_around(text: bytes, at: int) -> tuple[int, str]:
    """The number, from 0, and the text of the line that holds a byte."""
    start = text.rfind(b"\n", 0, at) + 1
    line = text[start:].split(b"\n", 1)[0]
    return text.count(b"\n", 0, at), line.decode("utf-8", errors="backslashreplace")
