"""Embedding files: .npy, .npz or .parquet, with the faces' names and the model's fingerprint.

A folder of .parquet files is read as one (`ida_jax.tables.parquet_files`). The fingerprint is
inside an .npz or .parquet, and in E.fingerprint.json beside an .npy, tied to it by its size and a
hash of both ends.

N faces, D embedding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import load_npz, require_plausible
from ida_jax.tables.blocks import one_line, open_npy
from ida_jax.tables.parquet_files import (
    ParquetLayout,
    is_parquet,
    parquet_batches,
    parquet_layout,
    row_place,
    table_suffix,
)
from ida_jax.tables.text import canonical, name_fault, text_lines

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 20  # entries
_OPEN_COLUMNS = 16
_ENDS = 1 << 16  # bytes


class EmbeddingFile(NamedTuple):
    """What a file of embeddings holds.

    Attributes:
      embeddings: [N, D] floating point, rows of any norm, N and D at least 1; memory-mapped from
        .npy.
      names: N distinct names, or None where there are none.
      fingerprint: of the model that made them (`FaceModel.fingerprint`); "" where unknown.
    """

    embeddings: np.ndarray
    names: list[str] | None
    fingerprint: str = ""

    @property
    def width(self) -> int:
        """D."""
        return self.embeddings.shape[1]


def read_embeddings(
    path: str | os.PathLike[str], *, names: str | os.PathLike[str] | None = None
) -> EmbeddingFile:
    """Reads embeddings by the file's suffix.

    - .npy: floating point [N, D], memory-mapped; the fingerprint from `fingerprint_file` beside it.
    - .npz: the array `embeddings`, or the only floating-point [N, D]; `names` and `fingerprint`, a
      string, where it has them.
    - .parquet: a column `embedding` of lists, or one floating-point column a dimension; a column
      `name` and the schema's metadata `fingerprint` where it has them. float32; what is missing
      becomes NaN. Also a folder of such files.

    Args:
      path: the file.
      names: a text file of one name per line in the rows' order; instead of the file's own.

    Names are in the form in which lists in text give them (`ida_jax.tables.text.canonical`).

    Raises:
      UserError: a file that is absent, truncated or of another kind; no rows; names that
        are empty, not text, repeated, or of a different number.
    """
    path = Path(path)
    suffix = table_suffix(path, (".npy", ".npz", ".parquet"), what="embeddings")
    own_names, fingerprint = None, ""
    if suffix == ".npy":
        embeddings = open_npy(path, what="embeddings")
        fingerprint = _fingerprint_beside(path)
    elif suffix == ".npz":
        embeddings, own_names, fingerprint = _from_npz(path)
    else:
        layout = parquet_layout(path, what="embeddings")
        embeddings, own_names = _from_parquet(layout)
        fingerprint = layout.metadata("fingerprint")
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        raise UserError(
            f"{path} is {embeddings.dtype} {list(embeddings.shape)}: expected floating point [N, D]"
        )
    if 0 in embeddings.shape:
        raise UserError(f"{path} is {list(embeddings.shape)}: it holds no embeddings")
    if names is not None:
        own_names = text_lines(Path(names), what="names")
        _check_names(own_names, len(embeddings), str(names), "line", 1)
    elif own_names is not None:
        own_names = [canonical(name) for name in own_names]
        _check_names(own_names, len(embeddings), f"the names in {path}", "row", 0, row_place(path))
    return EmbeddingFile(embeddings, own_names, fingerprint)


def read_column(path: str | os.PathLike[str], name: str) -> np.ndarray | None:
    """A column of lists beside the embeddings, float32 [N, S]; None where there is none.

    Raises:
      UserError: lists of different lengths, or of other things than numbers.
    """
    path = Path(path)
    if not is_parquet(path):
        return None
    layout = parquet_layout(path, what="embeddings")
    if name not in layout.schema.names:
        return None
    _check_types(path, layout.schema.remove_metadata(), [name], lists=True)
    return _from_lists(layout, name)


def names_beside(embeddings: Path, names: Path | None) -> Path | None:
    """The given file of names, or the one that `ida_jax.embed` writes beside an .npy."""
    beside = embeddings.with_suffix(".names.txt")
    return beside if names is None and beside.is_file() else names


def fingerprint_file(path: Path) -> Path:
    """The file beside an .npy, E.fingerprint.json, that names the model that made it.

    {"fingerprint": …, "size": …, "ends": …}, the last two by `file_stamp`: an .npy that was made
    later does not match, and counts as one of an unknown model.
    """
    return path.with_suffix(".fingerprint.json")


def file_stamp(path: Path) -> dict[str, int | str]:
    """What ties a fingerprint to a file: its size, and a hash of its first and last 64 KiB.

    The first of them hold an .npy's shape and type, and rows of another model differ; however
    large the file, no more is read. An edit in the middle goes unseen.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return {"size": size, "ends": digest.hexdigest()[:16]}


def _fingerprint_beside(path: Path) -> str:
    """The fingerprint of an .npy; "" if no file beside it matches it."""
    try:
        record = json.loads(fingerprint_file(path).read_bytes())
        stamp = file_stamp(path)
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(record, dict) or {key: record.get(key) for key in stamp} != stamp:
        return ""
    fingerprint = record.get("fingerprint")
    return fingerprint if isinstance(fingerprint, str) else ""


def _from_npz(path: Path) -> tuple[np.ndarray, list[str] | None, str]:
    arrays = load_npz(path)
    names = arrays.pop("names", None)
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise UserError(
            f"{path}: names is {names.dtype} {list(names.shape)}, expected strings, one per row"
        )
    stored = arrays.get("fingerprint")
    fingerprint = stored.item() if stored is not None and _is_text(stored) else ""
    if "embeddings" in arrays:
        chosen = "embeddings"
    else:
        fitting = [
            name
            for name, array in arrays.items()
            if array.ndim == 2 and np.issubdtype(array.dtype, np.floating)
        ]
        if len(fitting) != 1:
            raise UserError(
                f"{path} holds {', '.join(arrays) or 'no arrays'}: expected one named embeddings, "
                "or a single floating-point [N, D]"
            )
        (chosen,) = fitting
    try:
        listed = None if names is None else names.tolist()
    except (ValueError, SystemError) as error:  # code points that Unicode does not have
        raise UserError(f"{path}: names are not text: {one_line(error)}") from error
    return arrays[chosen], listed, fingerprint


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind == "U" and array.size == 1


def _from_parquet(layout: ParquetLayout) -> tuple[np.ndarray, list[str] | None]:
    path, schema = layout.path, layout.schema
    lists = "embedding" in schema.names
    columns = ["embedding"] if lists else [name for name in schema.names if name != "name"]
    _check_types(path, schema, columns, lists=lists)
    with np.errstate(over="ignore"):  # a double too large for float32 is infinite
        out = _from_lists(layout) if lists else _from_columns(layout, columns)
    if "name" not in schema.names:
        return out, None
    batches = parquet_batches(path, ["name"], rows=_BLOCK)
    try:
        names = [name for batch in batches for name in batch.column(0).to_pylist()]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: a name in its column 'name' is not UTF-8 text: {one_line(error)}"
        ) from error
    return out, ["" if name is None else name for name in names]


def _require_room(layout: ParquetLayout, width: int) -> None:
    for part in layout.parts:
        require_plausible(part.path, 4 * part.rows * width)


def _from_lists(layout: ParquetLayout, name: str = "embedding") -> np.ndarray:
    width = _list_width(layout.path, name)
    _require_room(layout, width)
    out = np.full((layout.rows, width), np.nan, np.float32)
    start, rows = 0, max(1, _BLOCK // max(1, width))
    for batch in parquet_batches(layout.path, [name], rows=rows):
        _fill_from_lists(out[start : start + len(batch)], batch.column(0), layout, start)
        start += len(batch)
    return out


def _from_columns(layout: ParquetLayout, columns: Sequence[str]) -> np.ndarray:
    _require_room(layout, len(columns))
    out = np.empty((layout.rows, len(columns)), np.float32)
    # A few columns at a time: of each that is open, a page (1 MiB as a rule) is in memory.
    for first in range(0, len(columns), _OPEN_COLUMNS):
        opened = columns[first : first + _OPEN_COLUMNS]
        start = 0
        for batch in parquet_batches(layout.path, opened, rows=max(1, _BLOCK // len(opened))):
            rows = out[start : start + len(batch)]
            for side, name in enumerate(opened, first):
                rows[:, side] = batch.column(name).to_numpy(zero_copy_only=False)
            start += len(batch)
    return out


def _check_types(path: Path, schema: "pa.Schema", columns: Sequence[str], *, lists: bool) -> None:
    from pyarrow import types

    for name in columns:
        kind = schema.field(name).type
        if lists and (types.is_list(kind) or types.is_large_list(kind) or _is_fixed(kind)):
            kind = kind.value_type
        elif lists:
            raise UserError(f"{path}: column '{name}' is {kind}, expected lists of floats")
        if not types.is_floating(kind):
            raise UserError(
                f"{path}: column '{name}' is {schema.field(name).type}, expected floating point; "
                "embeddings are one column 'embedding' of lists, or one column a dimension"
            )
    if "name" in schema.names:
        kind = schema.field("name").type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise UserError(f"{path}: column 'name' is {kind}, expected strings")


def _is_fixed(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return types.is_fixed_size_list(kind)


def _list_width(path: Path, name: str) -> int:
    import pyarrow.compute as pc

    for batch in parquet_batches(path, [name], rows=64):
        lengths = pc.list_value_length(batch.column(0)).drop_null()
        if len(lengths):
            return lengths[0].as_py()
    return 0


def _fill_from_lists(
    out: np.ndarray, column: "pa.Array", layout: ParquetLayout, start: int
) -> None:
    """Copies a column of lists into out; a missing list leaves its row as it is."""
    import pyarrow.compute as pc

    width = out.shape[1]
    lengths = pc.fill_null(pc.list_value_length(column), width).to_numpy()
    if (lengths != width).any():
        bad = int(np.argmax(lengths != width))
        raise UserError(
            f"{layout.place(start + bad)} has {lengths[bad]} dimensions, expected the first row's "
            f"{width}"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    out[column.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, width)


def _check_names(
    names: Sequence[str],
    count: int,
    where: str,
    unit: str,
    first: int,
    place: Callable[[int], str] | None = None,
) -> None:
    """Refuses too few or too many names, empty and repeated ones.

    Args:
      first: the first one's number.
      place: where a name is, in words; by `where`, `unit` and the number if None.
    """

    def at(number: int) -> str:
        return f"{where}: {unit} {number}" if place is None else f"{place(number)}: its name"

    if len(names) != count:
        raise UserError(f"{where}: {len(names)} names for {count} embeddings, expected one each")
    seen = {}
    for number, name in enumerate(names, first):
        if fault := name_fault(name):
            raise UserError(f"{at(number)} {fault}")
        if name in seen:
            other = f"{unit} {seen[name]}" if place is None else place(seen[name])
            raise UserError(f"{at(number)} repeats {name!r} of {other}; names must be distinct")
        seen[name] = number
