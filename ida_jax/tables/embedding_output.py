"""Embeddings out, in the forms that `ida_jax.tables.embeddings` reads: whole or not at all.

N faces, D embedding.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_together
from ida_jax.tables.blocks import known_suffix
from ida_jax.tables.embeddings import file_stamp, fingerprint_file


def check_output(path: str | os.PathLike[str]) -> None:
    """Checks before the work that embeddings can be written to a path."""
    path = Path(path)
    known_suffix(path, tuple(_WRITERS), what="embeddings")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: no folder {path.parent}; make it first")


def files_beside(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """What `write_embeddings` writes beside a path: names and fingerprint, for .npy alone."""
    path = Path(path)
    if path.suffix.lower() != ".npy":
        return ()
    return path.with_suffix(".names.txt"), fingerprint_file(path)


def write_embeddings(
    path: str | os.PathLike[str],
    blocks: Iterable[np.ndarray],
    names: Sequence[str],
    *,
    width: int,
    fingerprint: str = "",
    beside: Mapping[Path, Callable[[Path], None] | None] = MappingProxyType({}),
) -> None:
    """Writes embeddings as float32, the faces' names and the model's fingerprint.

    One block is held in memory.

    Args:
      path: .npy, with the names one per line in PATH's .names.txt beside it, and the fingerprint in
        its .fingerprint.json (`ida_jax.tables.embeddings.fingerprint_file`); .npz, the arrays
        `embeddings`, `names` and `fingerprint`; .parquet, the columns `name` and `embedding`, the
        schema's metadata `fingerprint`.
      blocks: [n, D] each, N rows in all.
      names: N, without line breaks.
      width: D.
      fingerprint: of the model that made them; "", which is not written, where unknown.
      beside: further files that belong to these embeddings, and what writes each at a path that it
        is given; None where there is none, and one of other embeddings goes. A kill leaves no old
        embeddings beside new files, nor the other way round.

    Raises:
      UserError: another suffix, or a file that cannot be written; what was there before is kept.
      ValueError: blocks of a different width, or not N rows; what was there before is kept.
    """
    path = Path(path)
    suffix = known_suffix(path, tuple(_WRITERS), what="embeddings")
    of_npy = files_beside(path)
    with written_together(path, *of_npy, *beside) as (temporary, *others):
        with temporary.open("wb") as file:
            blocks = _checked(blocks, len(names), width)
            _WRITERS[suffix](file, blocks, names, width, fingerprint)
        if of_npy:
            listed, record = others[:2]
            listed.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            _write_fingerprint(record, temporary, fingerprint)
        for written, write in zip(others[len(of_npy) :], beside.values(), strict=True):
            if write is None:
                written.unlink()
            else:
                write(written)


def _write_fingerprint(written: Path, embeddings: Path, fingerprint: str) -> None:
    if not fingerprint:
        written.unlink()
        return
    record = {"fingerprint": fingerprint, **file_stamp(embeddings)}
    written.write_text(json.dumps(record) + "\n", encoding="utf-8")


def _checked(blocks: Iterable[np.ndarray], count: int, width: int) -> Iterable[np.ndarray]:
    total = 0
    for block in blocks:
        if np.ndim(block) != 2 or block.shape[1] != width:
            raise ValueError(f"a block of shape {list(np.shape(block))}, expected [n, {width}]")
        total += len(block)
        if total > count:
            break
        yield np.ascontiguousarray(block, "<f4")
    if total != count:
        raise ValueError(f"{total} embeddings or more for {count} names: expected one each")


def _write_npy(
    file: BinaryIO,
    blocks: Iterable[np.ndarray],
    names: Sequence[str],
    width: int,
    fingerprint: str,
) -> None:
    del fingerprint  # it stands beside the file
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(block.tobytes())


def _write_npz(
    file: BinaryIO,
    blocks: Iterable[np.ndarray],
    names: Sequence[str],
    width: int,
    fingerprint: str,
) -> None:
    # np.savez would want the whole array in memory.
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            _write_npy(member, blocks, names, width, fingerprint)
        texts = {"names": np.array(names, np.str_)}
        if fingerprint:
            texts["fingerprint"] = np.array(fingerprint)
        for name, array in texts.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_parquet(
    file: BinaryIO,
    blocks: Iterable[np.ndarray],
    names: Sequence[str],
    width: int,
    fingerprint: str,
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.list_(pa.float32(), width)
    metadata = {"fingerprint": fingerprint} if fingerprint else None
    schema = pa.schema([("name", pa.string()), ("embedding", kind)], metadata=metadata)
    start = 0
    # Embeddings hardly repeat and hardly compress.
    with parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in blocks:
            rows = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=kind)
            listed = pa.array(names[start : start + len(block)], pa.string())
            writer.write_batch(pa.record_batch([listed, rows], schema=schema))
            start += len(block)


_WRITERS = {".npy": _write_npy, ".npz": _write_npz, ".parquet": _write_parquet}
