"""InsightFace's verification sets: a pickle of (2P encoded images, P times whether they match).

A pickle can run any code. Here its instructions are read before anything is built: only those of
lists, tuples, bytes, bools and whole numbers pass, and the few functions that NumPy's pickled
arrays call are replaced by this module's own.

P pairs.
"""

import csv
import io
import os
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ida_jax.data.image_files import open_images
from ida_jax.data.jpeg import check_image
from ida_jax.errors import UserError
from ida_jax.files import require_file, written_whole
from ida_jax.protocols.pair_lists import read_lfw_pairs

_ALLOWED = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
    "LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL "
    "STACK_GLOBAL REDUCE BUILD".split()
)
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_EXPECTED = "expected a pickle of lists, tuples, bytes, bools and arrays of them alone"
_WORDS = {"1": True, "true": True, "0": False, "false": False}


class VerificationBin(NamedTuple):
    """A verification set.

    Attributes:
      images: 2P encoded images; pair i is of the images 2i and 2i + 1.
      same: bool [P], True for a genuine pair.
      where: names the image of a row in messages.
    """

    images: Sequence[bytes]
    same: np.ndarray
    where: Callable[[int], str]


def read_verification_bin(path: str | os.PathLike[str]) -> VerificationBin:
    """Reads a .bin file of any pickle protocol, written by Python 2 or 3, NumPy 1 or 2.

    Images are bytes, or arrays of them; matches are bools, 0 and 1, or an array of them.

    Raises:
      UserError: no such file, one that is no whole pickle, that would call or build anything else
        than the above (it is named), or that holds other than two images a pair.
    """
    path = Path(path)
    require_file(path, what="verification set")
    content = path.read_bytes()
    names = _checked_instructions(path, content)
    try:
        loaded = _Unpickler(path, content, names).load()
        images, same = (_items(part) for part in _items(loaded))
        images = [_as_bytes(image) for image in images]
        if not all(value in (0, 1) for value in same):
            raise TypeError("matches that are not 0 or 1")
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        text = " ".join(str(error).split())[:80]
        raise UserError(f"{path} is damaged or of another form ({text}): {_EXPECTED}") from error
    if not same or len(images) != 2 * len(same):
        raise UserError(
            f"{path} holds {len(images)} images for {len(same)} pairs: expected two a pair, and "
            "one pair or more"
        )
    return VerificationBin(images, np.array(same, bool), lambda row: f"{path}, image {row}")


def write_verification_bin(
    output: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
) -> int:
    """Writes a .bin file of P pairs, and returns P; the images' bytes are kept as they are.

    Args:
      output: the file.
      images: what `open_images` takes: a folder, a list or a tar file.
      pairs: LFW's pairs.txt, or a .csv of the lines NAME,NAME,SAME (1 or 0, true or false), with or
        without a header. Names are the images' relative paths, their suffix may be left out.

    Raises:
      UserError: a list that cannot be read or names an absent image, or an image that is damaged.
    """
    files = open_images(images)
    stems = [os.path.splitext(name)[0] for name in files.names]
    if Path(pairs).suffix.lower() == ".csv":
        rows, same = _read_csv(Path(pairs), files.names, stems)
    else:
        rows, same, _ = read_lfw_pairs(pairs, stems)
    encoded = {}
    for row in sorted({int(row) for pair in rows for row in pair}):
        encoded[row] = files.encoded(row)
        problem = check_image(encoded[row]).problem
        if problem is not None:
            raise UserError(f"{files.where(row)}: the image {problem}")
    listed = [encoded[int(row)] for pair in rows for row in pair]
    with written_whole(output) as temporary, temporary.open("wb") as file:
        # Python 3.4 and newer read protocol 4; images in several pairs are written once.
        pickle.dump((listed, [bool(value) for value in same]), file, protocol=4)
    return len(same)


def _read_csv(
    path: Path, names: Sequence[str], stems: Sequence[str]
) -> tuple[list[tuple[int, int]], list[bool]]:
    require_file(path, what="pairs")
    row_of_name = {name: row for row, name in enumerate(stems)}
    row_of_name |= {name: row for row, name in enumerate(names)}
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    rows, same = [], []
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line]
        if not any(fields):
            continue
        if len(fields) != 3:
            raise UserError(f"{path}:{number}: {len(fields)} fields, expected NAME,NAME,SAME")
        value = _WORDS.get(fields[2].lower())
        if value is None and not rows and not {*fields[:2]} & row_of_name.keys():
            continue  # the header
        if value is None:
            raise UserError(f"{path}:{number}: same is {fields[2][:40]!r}, expected 1 or 0")
        for name in fields[:2]:
            if name not in row_of_name:
                raise UserError(f"{path}:{number}: {name[:80]!r} is not among the images")
        rows.append((row_of_name[fields[0]], row_of_name[fields[1]]))
        same.append(value)
    if not rows:
        raise UserError(f"{path} holds no pairs: expected lines NAME,NAME,SAME")
    return rows, same


def _checked_instructions(path: Path, content: bytes) -> list[int]:
    """Steps through a pickle's instructions; returns the bytes at which it loads names."""
    loads, at, count = [], 0, 0
    while True:
        op = pickletools.code2op.get(content[at : at + 1].decode("latin-1"))
        if op is None:
            _refuse(path, at, "no instruction of a pickle, or its end is missing")
        if op.name in ("GLOBAL", "INST"):
            name = b".".join(content[at + 1 : at + 400].split(b"\n", 2)[:2]).decode(
                "utf-8", "replace"
            )
        if op.name == "INST":
            _refuse_name(path, at, name)
        if op.name not in _ALLOWED:
            _refuse(path, at, f"a pickle's instruction {op.name}")
        start, count = at, count + 1
        at += 1
        if op.name in ("GLOBAL", "STACK_GLOBAL"):
            loads.append(start)
        for _ in range(2 if op.name == "GLOBAL" else 1):
            at = _after_argument(content, at, op.arg.n if op.arg is not None else 0)
        if not start < at <= len(content):
            _refuse(path, start, f"the file ends within {op.name}")
        # Room is made up to the highest place in the memo.
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            text = content[start + 1 : at]
            place = text.strip() if op.name == "PUT" else int.from_bytes(text, "little")
            if op.name == "PUT":
                place = int(place) if place.isdigit() and len(place) < 12 else count
            if place > count:
                _refuse(path, start, f"{op.name} of place {place}, after {count} instructions")
        if op.name == "STOP":
            return loads


def _after_argument(content: bytes, at: int, size: int) -> int:
    """The byte after an instruction's argument; 0 where there is none."""
    if size == pickletools.UP_TO_NEWLINE:
        return content.find(b"\n", at) + 1
    if size >= 0:
        return at + size
    length = int.from_bytes(content[at : at + _LENGTH_BYTES[size]], "little")
    return at + _LENGTH_BYTES[size] + length


def _refuse(path: Path, at: int, what: str) -> NoReturn:
    raise UserError(f"{path}, byte {at}: found {what}: {_EXPECTED}")


def _refuse_name(path: Path, at: int, name: str) -> NoReturn:
    shown = name[:80] if name.isprintable() else ascii(name[:80])
    raise UserError(f"{path}, byte {at}: tries to load {shown}, which could run code: {_EXPECTED}")


class _Unpickler(pickle.Unpickler):
    """Builds what `_checked_instructions` let pass; every name stands for this module's own."""

    def __init__(self, path: Path, content: bytes, loads: Sequence[int]) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._path, self._loads = path, iter(loads)

    def find_class(self, module: str, name: str) -> Callable:
        at = next(self._loads)
        found = _KNOWN.get(f"{module}.{name}")
        if found is None:
            _refuse_name(self._path, at, f"{module}.{name}")
        return found


class _Built:
    """An array or an array's type while it is built from its parts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.items: list = []

    def __setstate__(self, state: tuple) -> None:
        if self.kind == "array":  # version, shape, type, by columns, content
            _, shape, dtype, _, content = state
            self.items = _array_items(content, dtype, shape)


def _dtype(kind: str | bytes, *_: Any) -> _Built:
    return _Built(kind.decode("latin-1") if isinstance(kind, bytes) else kind)


def _array_items(content: Any, dtype: _Built, shape: Sequence[int]) -> list:
    """A pickled array of one axis, as a list; one of bytes (uint8) as a list of one bytes."""
    if len(shape) > 1:
        raise TypeError(f"an array of {len(shape)} axes")
    if isinstance(content, list):
        return content
    size = int(np.prod(shape, dtype=object))
    kind = dtype.kind.lstrip("|<>=")
    if kind == "u1" and len(content) == size:
        return [bytes(content)]
    if kind == "b1" and len(content) == size:
        return [bool(byte) for byte in content]
    if kind in ("i4", "i8") and len(content) == size * int(kind[1]):
        return np.frombuffer(content, f"<{kind}").tolist()
    width = int(kind[1:]) if kind[:1] == "S" and kind[1:].isdecimal() else 0
    if width and len(content) == size * width:
        return [bytes(content[at : at + width]) for at in range(0, len(content), width)]
    raise TypeError(f"an array of {kind[:20]!r}")


def _array_of_buffer(content: Any, dtype: _Built, shape: Sequence[int], *_: Any) -> _Built:
    array = _Built("array")
    array.items = _array_items(content, dtype, shape)
    return array


def _scalar(dtype: _Built, content: bytes) -> Any:
    return _array_items(content, dtype, (1,))[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise TypeError("text for bytes")
    return text.encode("latin-1")


_KNOWN: dict[str, Callable] = {
    "numpy.ndarray": lambda *_: _Built("array"),
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray._reconstruct"] = lambda *_: _Built("array")
    _KNOWN[f"{_core}.multiarray.scalar"] = _scalar
    _KNOWN[f"{_core}.numeric._frombuffer"] = _array_of_buffer


def _items(value: Any) -> Sequence:
    if isinstance(value, _Built):
        return value.items
    if not isinstance(value, list | tuple):
        raise TypeError(f"{type(value).__name__} where a list was expected")
    return value


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, _Built) and len(value.items) == 1:
        value = value.items[0]
    if not isinstance(value, bytes | bytearray):
        raise TypeError(f"{type(value).__name__} where an image's bytes were expected")
    return bytes(value)
