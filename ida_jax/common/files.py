"""Files that appear whole or not at all, and the one format of ida_jax's artefacts.

An artefact (anchor set, SSR module, face model) is one safetensors file: its arrays, and in the
header a string for each entry of its metadata, JSON-encoded. No pickle; readable from any language.

Training checkpoints are the exception: those are Orbax's.
"""

import contextlib
import errno
import hashlib
import json
import lzma
import math
import os
import struct
import sys
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import Damaged, UserError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64,
           "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}  # fmt: skip
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
# Beyond, a file is read as it is used; all of it at once would take seconds.
_LARGE = 256 << 20
_SAMPLED = 1024
_LARGEST = 1e19  # its square is float32
_MOST_FLOAT = sys.float_info.max

# What a file may promise whatever its size, and how many times its size beyond that.
_PROMISED, _MOST_TIMES = 64 << 20, 100


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`: renamed to `path` on success, or else removed.

    Raises:
      UserError: the folder does not exist or cannot be written, or the disk is full.
    """
    with written_together(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def written_together(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """As `written_whole`, for a file, the first path, and what stands beside it.

    At each moment all of them are the old ones, or the first is not there, or all are the new ones:
    a kill leaves no old file beside new ones. Where the body removes a temporary path, the file of
    before goes.

    Raises:
      UserError: as `written_whole`.
    """
    whole = [Path(path) for path in paths]
    temporaries: list[Path] = []
    failing = whole[0]
    try:
        for failing in whole:
            temporaries.append(_temporary(failing))
        yield temporaries
        # mkstemp's file is the owner's alone; an artefact follows the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        for failing, temporary in zip(whole, temporaries, strict=True):  # noqa: B007  of the error
            if temporary.exists():
                temporary.chmod(0o666 & ~umask)
                synchronise(temporary)
        first, *beside = zip(whole, temporaries, strict=True)
        if any(path.exists() or temporary.exists() for path, temporary in beside):
            whole[0].unlink(missing_ok=True)
        for failing, temporary in (*beside, first):
            if temporary.exists():
                os.replace(temporary, failing)
            else:
                failing.unlink(missing_ok=True)
        synchronise(whole[0].parent)
    except OSError as error:
        # NumPy says of a full disk only how many entries it has written.
        reason = error.strerror or f"not all of it was written ({error}); make room"
        raise UserError(f"cannot write {failing}: {reason}") from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    if path.exists() and not path.is_file():  # a folder, or a device, which a rename would replace
        raise UserError(f"cannot write {path}: it is there, and is not a file; name another one")
    try:
        handle, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error
    os.close(handle)
    return Path(name)


def synchronise(path: Path) -> None:
    """Has what was written, a file or a folder's names, on the disk: renames may overtake data."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, where the system opens none
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # cannot be done here
            raise
    finally:
        os.close(handle)


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    kind: str,
    metadata: Mapping[str, Any],
) -> None:
    """Writes arrays and JSON-able metadata as one safetensors file of the given kind.

    Equal arrays and metadata give equal bytes: safetensors' own writer shuffles the metadata. The
    header's entry "checksum" is that of all arrays and all other metadata.
    """
    header = {"kind": kind, **{key: json.dumps(value) for key, value in metadata.items()}}
    arrays = {name: _plain(value) for name, value in tensors.items()}
    # As safetensors orders them: each begins at a multiple of its entries' size.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    entries: dict[str, Any] = {"__metadata__": {}}
    end = 0
    for name in names:
        start, end = end, end + arrays[name].nbytes
        kept = arrays[name]
        entries[name] = {
            "dtype": _CODES[kept.dtype.newbyteorder("=")],
            "shape": list(kept.shape),
            "data_offsets": [start, end],
        }
    header["checksum"] = _checksum(header, arrays)
    entries["__metadata__"] = dict(sorted(header.items()))
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes(arrays[name]))


def _plain(value: Any) -> np.ndarray:
    # ascontiguousarray would make a number an array of one.
    array = np.asarray(value, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _checksum(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """32 hex digits over what a safetensors file says and holds, whatever the order."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(dict(header), sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def load_tensors(
    path: str | os.PathLike[str],
    *,
    kind: str,
    unit_rows: Sequence[str] = (),
    dtype: str = "float32",
    verify: bool = False,
    sample: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save_tensors` wrote: read-only memory-mapped arrays, and the metadata.

    The arrays' rows and the file's checksum are compared with what they must be; of a file of more
    than 256 MiB a sample of the rows alone, unless `verify` asks for all. Files of older versions
    have no checksum.

    Args:
      path: the file.
      kind: its kind.
      unit_rows: names of the arrays [N, D] whose rows have norm 1.
      dtype: of these arrays.
      verify: compare all of a large file too.
      sample: compare a sample of a small file too, as of one of many.

    Raises:
      UserError: no such file, or one of a different kind.
      Damaged: not a whole safetensors file; a row that is NaN, infinite or not of its norm, named;
        another checksum.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}: expected the {kind} file that ida_jax wrote")
    try:
        with safe_open(path, framework="np") as opened:
            header = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise Damaged(f"{path} is not a whole safetensors file: {error}") from error
    stored = header.get("kind", "unknown")
    if stored != kind:
        raise UserError(f"{path} is of kind '{stored}', expected '{kind}'")
    expected = header.pop("checksum", None)
    with complete(path):
        arrays = _memory_mapped(path)
        metadata = {key: json.loads(value) for key, value in header.items() if key != "kind"}
    whole = verify or (path.stat().st_size <= _LARGE and not sample)
    found = _checksum(header, arrays) if whole and expected is not None else None
    for name, array in arrays.items():
        # What has its checksum was saved so, a network's NaN after a collapse too.
        if found is None or found != expected or name in unit_rows:
            unit = dtype if name in unit_rows else None
            _check_rows(path, name, array, unit=unit, whole=whole)
    if found is not None and found != expected:
        raise Damaged(
            f"{path} is damaged: it is not what its checksum was taken of; copy it again, or make "
            "it again"
        )
    return arrays, metadata


def _check_rows(path: Path, name: str, array: np.ndarray, *, unit: str | None, whole: bool) -> None:
    """Refuses NaN, infinity, what float32 cannot square, and norms other than 1, by the row.

    Args:
      unit: the type of an array whose rows have norm 1; None for another.
    """
    if unit and (array.ndim != 2 or array.dtype != unit):
        raise Damaged(
            f"{path}: '{name}' is {array.dtype} {list(array.shape)}, expected {unit} [N, D]"
        )
    if array.dtype.kind != "f" or not array.size:
        return
    rows = np.atleast_1d(array).reshape(len(np.atleast_1d(array)), -1)
    if whole:
        step = max(1, (1 << 20) // rows.shape[1])
        blocks = (np.arange(n, min(n + step, len(rows))) for n in range(0, len(rows), step))
    else:
        blocks = iter([np.unique(np.linspace(0, len(rows) - 1, _SAMPLED).astype(int))])
    for numbers in blocks:
        block = rows[numbers[0] : numbers[-1] + 1] if whole else rows[numbers]
        largest = np.max(np.abs(block), axis=1)
        limit = _LARGEST if array.dtype == np.float32 else np.finfo(array.dtype).max
        bad = ~(largest <= limit)
        what = "holds NaN, infinity or a number that float32 cannot square"
        if unit and not bad.any():
            norms = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float32))
            bad = ~(np.abs(norms - 1) <= 1e-3)
            if bad.any():
                what = f"has norm {norms[bad][0]:g}, expected 1"
        if bad.any():
            raise Damaged(
                f"{path} is damaged: row {numbers[bad][0]} of its {name} {what}; copy it again, or "
                "make it again"
            )


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The kind of an artefact's file; None for any other file, or if there is no file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            return (opened.metadata() or {}).get("kind")
    except (SafetensorError, OSError):
        return None


@contextlib.contextmanager
def complete(path: str | os.PathLike[str]) -> Iterator[None]:
    """Reports a missing or malformed entry of an artefact as a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError,
            RecursionError) as error:  # fmt: skip
        raise UserError(
            f"{path} was not written by ida_jax, or by another version: {error!r}"
        ) from error


def require_types(entries: Any) -> None:
    """Raises ValueError where a dataclass that was read has a number or text of another kind.

    Of an artefact's header everything can be JSON; a `float` must be finite, an `int` of 64 bits,
    text printable.
    """
    for field in fields(entries):
        value = getattr(entries, field.name)
        if field.type is float:
            fits = type(value) in (int, float) and abs(value) <= _MOST_FLOAT
        elif field.type is int:
            fits = type(value) is int and abs(value) < 1 << 63
        else:
            fits = field.type is not str or (type(value) is str and value.isprintable())
        if not fits:
            kind = {float: "a finite number", int: "an integer", str: "plain text"}[field.type]
            raise ValueError(f"{field.name} is {str(value)[:40]}, expected {kind}")


def json_text(value: Any) -> str:
    """Indented JSON, with null for NaN and the infinities, and plain numbers for NumPy's."""

    def plain(entry: Any) -> Any:
        if isinstance(entry, Mapping):
            return {str(key): plain(inner) for key, inner in entry.items()}
        if isinstance(entry, list | tuple):
            return [plain(inner) for inner in entry]
        if hasattr(entry, "tolist"):
            return plain(entry.tolist())
        return None if isinstance(entry, float) and not math.isfinite(entry) else entry

    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


def read_json(path: Path, *, what: str, advice: str = "copy it again") -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      path: the file.
      what: what an error says that is missing where there is no such file.
      advice: what to do where it is damaged.

    Raises:
      UserError: no such file.
      Damaged: not whole JSON, or another kind of value.
    """
    require_file(path, what=what)
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"{path} is damaged: not a whole JSON file ({reason}); {advice}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise Damaged(f"{path} is damaged: a JSON {kind}, expected an object; {advice}")
    return content


def require_file(path: Path, *, what: str) -> None:
    """Raises a UserError if there is no file at the path."""
    try:
        found = path.is_file()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise UserError(f"no {what} at {path}: put the file there, or name another one")


def file_inside(path: Path, name: str) -> Path:
    """The file itself, or the one of that name where the path is a folder's."""
    return path / name if path.is_dir() else path


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled ones are refused.

    Raises:
      UserError: no such file, not a whole .npz file, or one with pickled objects.
    """
    require_file(path, what="arrays")
    try:
        with zipfile.ZipFile(path) as archive:
            require_plausible(path, sum(member.file_size for member in archive.infolist()))
            for member in archive.infolist():
                _check_member(archive, member)
        with np.load(path, allow_pickle=False) as opened:
            return dict(opened)
    # Damage shows as almost anything: RuntimeError is of an encrypted or oddly compressed one.
    except (ValueError, OSError, EOFError, TypeError, RuntimeError, SyntaxError, MemoryError,
            AttributeError, OverflowError, KeyError, zipfile.BadZipFile, zlib.error, struct.error,
            lzma.LZMAError, tokenize.TokenError) as error:  # fmt: skip
        raise not_whole(path, ".npz file of plain arrays", error) from error


def not_whole(path: str | os.PathLike[str], form: str, error: Exception) -> UserError:
    """What to say of a file that a library could not read: damage, or the system's own reason."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"cannot read {path}: {error.strerror or error}")
    said = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a whole {form}: {said}")


def require_plausible(path: Path, promised: int) -> None:
    """Refuses a small file that would fill the memory, before room is made for what it promises.

    Raises:
      UserError: more than 64 MiB, and more than 100 times the file's size.
    """
    size = path.stat().st_size
    if promised > max(_PROMISED, _MOST_TIMES * size):
        raise UserError(
            f"{path} promises {promised / 2**30:,.1f} GiB in {size:,} bytes, more than "
            f"{_MOST_TIMES} times its size: it is damaged or made to fill the memory"
        )


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """An .npz's member is an array, and holds what its header says."""
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename[:60]!r} in it is not an .npy")
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(opened)
        held = member.file_size - opened.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:
        raise ValueError(
            f"{member.filename[:60]!r} in it promises {list(shape)} of {dtype} and holds {held:,} "
            "bytes"
        )


def _memory_mapped(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays without a copy; safetensors' own NumPy reader copies them into memory."""
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]
        if 0 in shape or not shape:  # np.memmap takes neither an empty array nor a scalar
            arrays[name] = np.fromfile(
                path, dtype, count=int(np.prod(shape)), offset=offset
            ).reshape(shape)
        else:
            arrays[name] = np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
    return arrays
