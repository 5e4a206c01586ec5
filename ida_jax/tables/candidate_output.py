"""Candidates of 1:N searches out: one line per candidate, written whole or not at all.

M probes.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.files import written_whole
from ida_jax.tables.blocks import known_suffix
from ida_jax.tables.score_origin import KEY, ScoreOrigin

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv")


class CandidateLines(NamedTuple):
    """Candidates, a probe's one after the other and the best first.

    Attributes:
      probe: int64 or str, its row or name.
      rank: int32, from 1; 0 on the line of a probe that nobody in the gallery is.
      name: str or None, the gallery face's; None on such a line.
      score: float32; there the highest score.
      probability: float32, or None where no scores have one.
    """

    probe: np.ndarray
    rank: np.ndarray
    name: np.ndarray
    score: np.ndarray
    probability: np.ndarray | None


def write_candidates(
    path: str | os.PathLike[str],
    blocks: Iterable[CandidateLines],
    *,
    named: bool,
    probability: bool,
    origin: ScoreOrigin,
) -> None:
    """Writes the columns probe, rank, name, score and, with a calibration, probability.

    Args:
      path: .parquet, with the origin in its metadata; or .csv, where no name is an empty field.
      blocks: a row group of a .parquet each.
      named: probes are names, not rows.
      probability: whether the lines have one.
      origin: what the scores were made with.

    Raises:
      UserError: another suffix, or a file that cannot be written; what was there is kept.
    """
    import pyarrow as pa
    from pyarrow import csv as pa_csv
    from pyarrow import parquet

    path = Path(path)
    suffix = known_suffix(path, SUFFIXES, what="candidates")
    schema = _schema(named, probability)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        if suffix == ".parquet":
            schema = schema.with_metadata({KEY: json.dumps(origin.to_json())})
            writer = parquet.ParquetWriter(file, schema)
        else:
            file.write(f"{','.join(schema.names)}\n".encode())
            options = pa_csv.WriteOptions(include_header=False)
            writer = pa_csv.CSVWriter(file, schema, write_options=options)
        with writer:
            for lines in blocks:
                columns = [column for column in lines if column is not None]
                arrays = [
                    pa.array(column, kind)
                    for column, kind in zip(columns, schema.types, strict=True)
                ]
                writer.write_batch(pa.record_batch(arrays, schema=schema))


def _schema(named: bool, probability: bool) -> "pa.Schema":
    import pyarrow as pa

    columns = [
        ("probe", pa.string() if named else pa.int64()),
        ("rank", pa.int32()),
        ("name", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
    ]
    return pa.schema(
        [pa.field(*column, nullable=column[0] == "name") for column in columns[: 4 + probability]]
    )
