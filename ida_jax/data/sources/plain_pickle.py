"""Pickles of plain data, read without running any code that they name.

A pickle is a program. Its instructions are read before anything is built: only those of lists,
tuples, bytes, text, bools and whole numbers pass, and the few functions that pickled NumPy arrays
call are replaced by this module's own.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError

_ALLOWED = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL
    STACK_GLOBAL REDUCE BUILD
"""
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
EXPECTED = "expected a pickle of lists, tuples, bytes, bools and arrays of them alone"
# Element types of arrays, as they are read; a bool's byte may hold anything.
_TYPES = {"b1": "u1", "u1": "u1", "i1": "i1", "i4": "<i4", "i8": "<i8"}


class Array:
    """A pickled array of one axis.

    Attributes:
      values: of whole numbers (bools are uint8 0 and 1) or of bytes (S); the list of an object
        array; None until it is known.
    """

    values: np.ndarray | list | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, _, content = state
        self.values = content if isinstance(content, list) else _values(content, kind, shape)


def load_plain_pickle(path: Path) -> Any:
    """What a pickle of any protocol holds, written by Python 2 or 3, NumPy 1 or 2.

    It is built of lists, tuples, bytes, str, int, bool, None and `Array`; Python 2's str is bytes.
    Memory stays within a small multiple of the file's size.
    """
    content = path.read_bytes()
    loads, stop, fault = _checked_instructions(content)
    if fault is not None:
        # What comes before is built all the same: a name that it loads says more than the fault.
        content = content[:stop] + pickle.STOP + content[stop + 1 :]
    try:
        value = _Unpickler(path, content, loads).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        if fault is None:
            text = ascii(" ".join(str(error).split())[:80])[1:-1]
            raise UserError(
                f"{path} is damaged or not in this format ({text}): {EXPECTED}"
            ) from error
    if fault is not None:
        raise UserError(f"{path}, byte {stop}: {fault}: {EXPECTED}")
    return value


def _checked_instructions(content: bytes) -> tuple[list[int], int, str | None]:
    """Steps through a pickle's instructions.

    Returns:
      The bytes at which it loads names; the first instruction that does not pass, or the end; what
      is wrong with that one.
    """
    allowed = frozenset(_ALLOWED.split())
    loads, at, count = [], 0, 0
    while True:
        op = pickletools.code2op.get(content[at : at + 1].decode("latin-1"))
        if op is None:
            what = "no instruction of a pickle" if at < len(content) else "the file ends early"
            return loads, at, what
        if op.name == "INST":  # loads a name and calls it
            return loads, at, f"tries to load {_shown(content[at + 1 : at + 200])}"
        if op.name not in allowed:
            return loads, at, f"the pickle's instruction {op.name}"
        end = _after_argument(content, at + 1, 0 if op.arg is None else op.arg.n)
        if op.name == "GLOBAL" and end:
            end = _after_argument(content, end, pickletools.UP_TO_NEWLINE)
        if not at < end <= len(content):
            return loads, at, f"the file ends within the pickle's instruction {op.name}"
        count += 1
        # Memory is taken up to the highest place in the memo.
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            place = content[at + 1 : end]
            if op.name == "PUT":
                place = int(place) if place.strip().isdigit() and len(place) < 12 else count + 1
            else:
                place = int.from_bytes(place, "little")
            if place > count:
                return loads, at, f"the pickle's instruction {op.name} leaves a gap"
        if op.name in ("GLOBAL", "STACK_GLOBAL"):
            loads.append(at)
        at = end
        if op.name == "STOP":
            return loads, at, None


def _after_argument(content: bytes, at: int, size: int) -> int:
    """The byte after an instruction's argument; 0 where there is none."""
    if size == pickletools.UP_TO_NEWLINE:
        return content.find(b"\n", at) + 1
    if size >= 0:
        return at + size
    length = int.from_bytes(content[at : at + _LENGTH_BYTES[size]], "little")
    return at + _LENGTH_BYTES[size] + length


def _shown(name: bytes) -> str:
    """Two lines, the module and what is in it, as a name."""
    return ascii(b".".join(name.split(b"\n")[:2]).decode("latin-1")[:80])[1:-1]


class _Unpickler(pickle.Unpickler):
    """Builds what `_checked_instructions` let pass; every name stands for this module's own."""

    def __init__(self, path: Path, content: bytes, loads: Sequence[int]) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._path, self._loads = path, iter(loads)
        self._room = len(content)

    def find_class(self, module: str, name: str) -> Callable:
        at = next(self._loads)
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            shown = _shown(f"{module}\n{name}".encode("utf-8", "replace"))
            raise UserError(
                f"{self._path}, byte {at}: tries to load {shown}, which could run code: {EXPECTED}"
            )
        return known

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in the protocols 0 to 2."""
        if encoding not in ("latin1", b"latin1"):
            raise ValueError("text in place of bytes")
        # One text may be encoded again and again.
        self._room -= len(text)
        if self._room < 0:
            raise ValueError("more bytes than the file has")
        return text.encode("latin-1")


class _Kind:
    """An array's type: its letter and width."""

    def __init__(self, text: str | bytes, *_: Any) -> None:
        self.text = (text.decode("latin-1") if isinstance(text, bytes) else text).lstrip("|<>=")

    def __setstate__(self, state: tuple) -> None:
        """Byte order and fields, which the types read here do not have."""


def _values(content: bytes | bytearray, kind: _Kind, shape: Sequence[int]) -> np.ndarray:
    is_text = kind.text[:1] == "S" and kind.text[1:].isdecimal()
    dtype = np.dtype(kind.text if is_text else _TYPES[kind.text])
    # No value is ever shown: tuples that hold each other twice have no end in print.
    if not isinstance(shape, tuple) or not all(type(count) is int for count in shape):
        raise ValueError("an array whose shape is not a tuple of whole numbers")
    count = math.prod(shape)
    if len(shape) > 1 or count * dtype.itemsize != len(content) or not dtype.itemsize:
        raise ValueError(f"an array whose shape, of {len(shape)} axes, does not fit its bytes")
    return np.frombuffer(content, dtype)


def _array_of_buffer(content: Any, kind: _Kind, shape: Sequence[int], *_: Any) -> Array:
    array = Array()
    array.values = _values(content, kind, shape)
    return array


_KNOWN: dict[str, Callable] = {
    # Named as the class to build, never called.
    "numpy.ndarray": lambda *_: Array(),
    "numpy.dtype": lambda *parts: _Kind(*parts),
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN |= {
        f"{_core}.multiarray._reconstruct": lambda *_: Array(),
        f"{_core}.multiarray.scalar": lambda kind, content: _values(content, kind, (1,)).item(),
        f"{_core}.numeric._frombuffer": _array_of_buffer,
    }
