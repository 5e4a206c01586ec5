"""Scores out: written block by block, whole or not at all.

A name without a suffix is a folder of Parquet parts, as engines write and read it:
part-00000.parquet and so on, of 4,194,304 rows each, in order, and an empty _SUCCESS.

P pairs.
"""

import csv
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.outputs import written_folder
from ida_jax.tables.blocks import known_suffix
from ida_jax.tables.pair_keys import KeyColumn
from ida_jax.tables.score_origin import KEY, ScoreOrigin, origin_file, origin_record

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIXES = (".npy", ".csv", ".parquet")
_BLOCK = 1 << 20
# Of a folder: blocks a part.
_PART_BLOCKS = 4
_PART = re.compile(r"part-[0-9]{5,}\.parquet")
_SUCCESS = "_SUCCESS"


def check_output(path: str | os.PathLike[str]) -> None:
    """Checks before the work that scores can be written to a path.

    Raises:
      UserError: a suffix other than .npy, .csv and .parquet, a folder in its place (of a name
        without a suffix, one that holds more than such parts), or a folder around it that is absent
        or cannot be written.
    """
    path = Path(path)
    if path.suffix:
        known_suffix(path, _SUFFIXES, what="scores")
    if path.is_dir():
        _require_replaceable(path)
    elif not path.suffix and path.exists():
        raise UserError(
            f"cannot write {path}: without a suffix it is a folder of parts, and a file is there; "
            f"add one of {', '.join(_SUFFIXES)}"
        )
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error


def _require_replaceable(path: Path) -> None:
    """Refuses a folder that is not wholly one of parts that were written here."""
    if path.suffix:
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    for inside in path.iterdir():
        if not (_PART.fullmatch(inside.name) or inside.name == _SUCCESS):
            raise UserError(
                f"cannot write {path}: the folder holds {inside.name}, which is not a part of "
                "scores; name a new folder"
            )


def files_beside(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """What `write_scores` writes beside a path: the scores' origin, for .npy and .csv alone."""
    path = Path(path)
    return () if path.suffix.lower() in ("", ".parquet") else (origin_file(path),)


def write_scores(
    path: str | os.PathLike[str],
    chunks: Iterable[np.ndarray],
    count: int,
    origin: ScoreOrigin | None = None,
    *,
    keys: KeyColumn | None = None,
) -> None:
    """Writes scores as float32, whole or not at all, holding one chunk and one block in memory.

    The bytes depend on the scores and their origin alone, not on how they are cut into chunks.

    Args:
      path: .npy, float32 [P]; .csv, the header `score` and one score per line in the fewest digits
        that give it back, NaN as nan; .parquet, one column `score`; no suffix, a folder of such
        parts.
      chunks: [n] each, P in all.
      count: P.
      origin: what the scores were made with; it goes into a .parquet's metadata, and into
        `files_beside` of the others. None where unknown: a former file beside goes.
      keys: a column before the scores, not for .npy.

    Raises:
      UserError: another suffix, or a file that cannot be written (a full disk, say); what was there
        before is kept.
      ValueError: chunks of a different shape or length; what was there before is kept.
    """
    path = Path(path)
    if not path.suffix:
        check_output(path)
        with written_folder(path) as folder:
            _write_parts(folder, _blocks(chunks, count), origin, keys)
        return
    suffix = known_suffix(path, _SUFFIXES, what="scores")
    with written_whole(path) as temporary:
        with temporary.open("wb") as file:
            if suffix == ".parquet":
                _write_parquet(file, _blocks(chunks, count), origin, keys)
            elif suffix == ".csv":
                _write_csv(file, _blocks(chunks, count), keys)
            else:
                _write_npy(file, _blocks(chunks, count), count)
        # Before the scores: older ones that a kill leaves are of unknown origin, not of this one.
        for beside in files_beside(path):
            _write_beside(beside, None if origin is None else origin_record(origin, temporary))


def _write_beside(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        with written_whole(path) as written:
            written.write_bytes(content)


def _blocks(chunks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The scores in blocks of one size: a Parquet file's bytes depend on its row groups."""
    buffer, filled, total = np.empty(min(_BLOCK, count), np.float32), 0, 0
    for chunk in chunks:
        if np.ndim(chunk) != 1:
            raise ValueError(f"a chunk of shape {list(np.shape(chunk))}, expected [n]")
        total += len(chunk)
        if total > count:
            break
        while len(chunk):
            taken = chunk[: len(buffer) - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            chunk = chunk[len(taken) :]
            if filled == len(buffer):
                yield buffer
                filled = 0
    if total != count:
        raise ValueError(f"{total} scores or more for {count} pairs: expected one each")
    if filled:
        yield buffer[:filled]


def _write_npy(file: BinaryIO, blocks: Iterator[np.ndarray], count: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(block.astype("<f4", copy=False))


def _write_csv(file: BinaryIO, blocks: Iterator[np.ndarray], keys: KeyColumn | None) -> None:
    from pyarrow import csv as pa_csv

    schema, header = _schema(keys), io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(schema.names)
    file.write(header.getvalue().encode())
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    with pa_csv.CSVWriter(file, schema, write_options=options) as writer:
        for block in blocks:
            writer.write(_batch(block, keys, schema))


def _write_parts(
    folder: Path, blocks: Iterator[np.ndarray], origin: ScoreOrigin | None, keys: KeyColumn | None
) -> None:
    for number in itertools.count():
        some = itertools.islice(blocks, _PART_BLOCKS)
        first = next(some, None)
        if first is None:
            break
        with (folder / f"part-{number:05d}.parquet").open("wb") as file:
            _write_parquet(file, itertools.chain([first], some), origin, keys)
    (folder / _SUCCESS).touch()


def _write_parquet(
    file: BinaryIO,
    blocks: Iterator[np.ndarray],
    origin: ScoreOrigin | None,
    keys: KeyColumn | None,
) -> None:
    from pyarrow import parquet

    schema = _schema(keys)
    if origin is not None:
        schema = schema.with_metadata({KEY: json.dumps(origin.to_json())})
    # Scores hardly repeat and hardly compress.
    with parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in blocks:
            writer.write_batch(_batch(block, keys, schema))


def _batch(block: np.ndarray, keys: KeyColumn | None, schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa

    columns = [] if keys is None else [keys.take(len(block))]
    return pa.record_batch([*columns, pa.array(block)], schema=schema)


def _schema(keys: KeyColumn | None) -> "pa.Schema":
    import pyarrow as pa

    fields = [] if keys is None else [pa.field(keys.name, keys.kind, nullable=False)]
    return pa.schema([*fields, pa.field("score", pa.float32(), nullable=False)])
