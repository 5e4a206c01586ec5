"""Files that appear whole or not at all, and the one format of ida_jax's artefacts.

An artefact (anchor set, SSR module, face model) is one safetensors file: its arrays, and in the
header a string for each entry of its metadata, JSON-encoded. No pickle; readable from any language.

Training checkpoints are the exception: those are Orbax's.
"""

import contextlib
import hashlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it becomes `path` on success, and vanishes otherwise.

    Raises:
      UserError: the folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's file is the owner's alone; an artefact follows the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    kind: str,
    metadata: Mapping[str, Any],
) -> None:
    """Writes arrays and JSON-able metadata as one safetensors file of the given kind."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    header = {key: json.dumps(value) for key, value in metadata.items()}
    # ascontiguousarray would make a number an array of one.
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with written_whole(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"kind": kind, **header})
        except SafetensorError as error:  # a full disk, say
            raise UserError(f"cannot write {path}: {error}") from error


def load_tensors(
    path: str | os.PathLike[str], *, kind: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save_tensors` wrote: read-only memory-mapped arrays, and the metadata.

    Raises:
      UserError: no such file, not a whole safetensors file, or one of a different kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}: expected the {kind} file that ida_jax wrote")
    try:
        with safe_open(path, framework="np") as opened:
            header = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    stored = header.pop("kind", "unknown")
    if stored != kind:
        raise UserError(f"{path} is of kind '{stored}', expected '{kind}'")
    with complete(path):
        return _memory_mapped(path), {key: json.loads(value) for key, value in header.items()}


def fingerprint_of(described: Any, variables: Mapping[str, Any]) -> str:
    """16 hex digits of a SHA-256 over a JSON-able description and every array, by its name.

    Args:
      described: what the arrays alone do not tell: a network's name and options.
      variables: nested, of arrays.
    """
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, value in sorted(_flat(variables).items()):
        value = np.ascontiguousarray(value)
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def _flat(variables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"params/conv/kernel": array}."""
    flat = {}
    for name, value in variables.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}/") if nested else {f"{prefix}{name}": value}
    return flat


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The kind of an artefact's file; None for any other file, or none at all."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            return (opened.metadata() or {}).get("kind")
    except (SafetensorError, OSError):
        return None


@contextlib.contextmanager
def complete(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an entry that an artefact lacks, or a malformed one, into one clear line."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} was not written by ida_jax, or by another version: {error!r}"
        ) from error


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


def require_file(path: Path, *, what: str) -> None:
    """Raises UserError where there is no file at the path."""
    if not path.is_file():
        raise UserError(f"no {what} at {path}: put the file there, or name another one")


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled ones are refused.

    Raises:
      UserError: no such file, not a whole .npz file, or one with pickled objects.
    """
    require_file(path, what="arrays")
    try:
        with np.load(path, allow_pickle=False) as opened:
            return dict(opened)
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path} is not a whole .npz file of plain arrays: {error}") from error


def _memory_mapped(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays without a copy; safetensors' own NumPy reader copies them into memory."""
    dtypes = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I32": np.int32,
              "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}  # fmt: skip
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        dtype, shape = dtypes[entry["dtype"]], tuple(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]
        if 0 in shape or not shape:  # np.memmap takes neither an empty array nor a scalar
            arrays[name] = np.fromfile(
                path, dtype, count=int(np.prod(shape)), offset=offset
            ).reshape(shape)
        else:
            arrays[name] = np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
    return arrays
