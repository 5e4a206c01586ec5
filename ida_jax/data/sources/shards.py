"""Records into ArrayRecord shards, each written whole, so that a stopped preparation resumes.

Which shard holds which rows depends on their number alone, and rows keep the source's order. Beside
a shard lies a small report of what went into it; a shard with a report is finished.

TFDS's own writer starts again when it was stopped.

N rows, S shards.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.processes import cores

# About 200 MB of 112 × 112 crops: few files for 42 M images, little to do again after a stop.
ROWS_PER_SHARD = 32_768
# Corrupt rows that are listed before the rest is no longer read.
LISTED = 10
_BLOCK = 64  # rows a thread takes at once; a task of one image would cost a fifth of its decoding
_WINDOW = 64 * _BLOCK  # rows in memory at once, about 25 MB of crops


class Example(NamedTuple):
    """What a row becomes.

    Attributes:
      features: name to bytes or integer, as TFDS keeps an image, a class label or a bool.
      converted: images that could not be kept as they were.
      problem: why the row is corrupt, or None.
    """

    features: dict[str, bytes | int]
    converted: int = 0
    problem: str | None = None


class Shard(NamedTuple):
    """What a shard holds.

    Attributes:
      records: their number.
      bytes: of all records.
      converted: images that could not be kept as they were.
      corrupt: (row, problem) of each row that is left out.
    """

    records: int
    bytes: int
    converted: int
    corrupt: list[tuple[int, str]]


def write_shards(
    folder: Path,
    prefix: str,
    example: Callable[[int], Example],
    *,
    rows: int,
    stop_at_corrupt: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> list[Shard]:
    """Writes the shards FOLDER/PREFIX-0000i-of-0000S that are not there yet.

    Args:
      folder: where; it exists, and holds shards of this source alone.
      prefix: NAME-SPLIT.array_record, as TFDS names its files.
      example: a row's record, from any thread.
      rows: N.
      stop_at_corrupt: end after the shard with which this many rows are corrupt; None never does.

    Returns:
      What each of the S shards holds, up to where it ended.
    """
    from ida_jax.common.progress import progress_bar

    count = -(-rows // rows_per_shard)
    bounds = np.linspace(0, rows, count + 1).astype(int).tolist()
    shards: list[Shard] = []
    with (
        ThreadPoolExecutor(cores()) as pool,
        progress_bar(total=rows, unit="image", delay=1) as progress,
    ):
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            path = folder / shard_name(prefix, number, count)
            report = folder / f"{path.name}.json"
            shard = _finished(path, report)
            if shard is None:
                shard = _write_shard(path, _serialized(pool, example, start, stop), progress.update)
                with written_whole(report) as temporary:
                    temporary.write_text(json.dumps(shard._asdict()), encoding="utf-8")
            else:
                # A rate that counted these would promise too early an end.
                progress.initial += stop - start
                progress.update(stop - start)
            shards.append(shard)
            if stop_at_corrupt and sum(len(s.corrupt) for s in shards) >= stop_at_corrupt:
                break
    return shards


def shard_name(prefix: str, number: int, count: int) -> str:
    """A shard's file name, as TFDS writes it."""
    return f"{prefix}-{number:05d}-of-{count:05d}"


def remove_reports(folder: Path) -> None:
    """Removes the shards' reports, once all of them are read."""
    for report in folder.glob("*.array_record-*.json"):
        report.unlink()


def _finished(path: Path, report: Path) -> Shard | None:
    try:
        entries = json.loads(report.read_text(encoding="utf-8"))
        corrupt = [(int(row), str(problem)) for row, problem in entries["corrupt"]]
        shard = Shard(*(int(entries[name]) for name in Shard._fields[:3]), corrupt)
    # None, or a damaged one, which is as good as none.
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return shard if path.is_file() else None


def _write_shard(
    path: Path, rows: Iterator[tuple[int, bytes, Example]], progress: Callable[[int], Any]
) -> Shard:
    from array_record.python.array_record_module import ArrayRecordWriter

    records = size = converted = 0
    corrupt = []
    try:
        with written_whole(path) as temporary:
            # JPEGs do not shrink; a group of one is what random access wants.
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            try:
                for row, record, (_, changed, problem) in rows:
                    if problem is None:
                        writer.write(record)
                        records, size = records + 1, size + len(record)
                        converted += changed
                    else:
                        corrupt.append((row, problem))
                    progress(1)
            finally:
                writer.close()
    except RuntimeError as error:  # array_record's own
        raise UserError(
            f"cannot write {path} ({error}): make room; the same command continues from here"
        ) from error
    return Shard(records, size, converted, corrupt)


def _serialized(
    pool: ThreadPoolExecutor, example: Callable[[int], Example], start: int, stop: int
) -> Iterator[tuple[int, bytes, Example]]:
    def block(rows: Sequence[int]) -> list[tuple[int, bytes, Example]]:
        made = [(row, example(row)) for row in rows]
        return [(row, serialize(image.features), image) for row, image in made]

    for first in range(start, stop, _WINDOW):
        last = min(stop, first + _WINDOW)
        blocks = [range(row, min(last, row + _BLOCK)) for row in range(first, last, _BLOCK)]
        for made in pool.map(block, blocks):
            yield from made


def serialize(features: dict[str, bytes | int]) -> bytes:
    """The tf.train.Example of these features, as TFDS writes it."""
    from tensorflow_datasets.proto import tf_example_pb2
    from tensorflow_datasets.proto import tf_feature_pb2 as proto

    stored = {
        name: proto.Feature(bytes_list=proto.BytesList(value=[value]))
        if isinstance(value, bytes)
        else proto.Feature(int64_list=proto.Int64List(value=[value]))
        for name, value in features.items()
    }
    example = tf_example_pb2.Example(features=proto.Features(feature=stored))
    # Else the features' order changes from process to process.
    return example.SerializeToString(deterministic=True)
