"""Faces' numbers and pairs' scores of batches: what Ray Data or Spark maps over a table.

A batch is a dict of columns, {name: array of n rows}. Two callables take one and give it back with
columns more:

    BatchFaceTerms   embeddings [n, D]      → terms [n, S], nearest [n]
    BatchPairScores  two faces of each pair → score [n]

Both pickle as settings, paths and arrays. A worker makes what is on its device at the first batch;
copies of one callable in a process share it. Shapes are padded to few sizes, which are compiled
then, so that no batch compiles anew. They serve every method of the method table.

n rows of a batch, N faces, D embedding, S numbers of a face.
"""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ida_jax.common.devices import filled, padded
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_rows
from ida_jax.rescoring.method_table import ARTEFACTS, HEADLINE, require_method
from ida_jax.rescoring.pairs import (
    Subset,
    checked_pairs,
    compile_blocks,
    score_chunk,
    score_gathered,
)
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.tables.embeddings import read_column, read_embeddings
from ida_jax.tables.pair_lists import name_lookup

if TYPE_CHECKING:
    import pyarrow as pa

Batch = Mapping[str, np.ndarray]

# Faces searched at once: a batch of fewer is filled up.
_SLAB = 4096
# What callables have made in this process, the last ones, by the callable's identity.
_STATES: dict[str, Any] = {}
_MOST_STATES = 4


class BatchFaceTerms:
    """A method's numbers of a batch's faces: `Rescorer.searched_terms` as a column."""

    def __init__(
        self,
        anchors: Any = None,
        *,
        method: str = HEADLINE,
        embedding: str = "embedding",
        label: str = "",
        skip_bad: bool = False,
        **settings: Any,
    ) -> None:
        """Args:
          anchors: as `Rescorer` takes them; a path is read by each worker.
          method: of `ida_jax.rescoring.method_table.METHODS`.
          embedding: the column of the embeddings, of any norm.
          label: a column of integers, identities in the numbering of the anchors' labels, which are
            left out of a face's support set or cohort; "" for none.
          skip_bad: gives a zero, NaN or infinite embedding NaN, which never matches, instead of
            refusing it.
          settings: the other arguments of `Rescorer`: k, tau, top_n, ssr and so on.

        Raises:
          UserError: an unknown method.
        """
        require_method(method)
        given = {"anchors": anchors, "method": method, **settings}
        files = [name for name in ARTEFACTS if isinstance(given.get(name), str | os.PathLike)]
        # A worker may run in another folder.
        self.settings = {**given, **{name: os.path.abspath(given[name]) for name in files}}
        self.embedding, self.label, self.skip_bad = embedding, label, skip_bad
        self._id = uuid.uuid4().hex

    @property
    def scorer(self) -> Rescorer:
        """The method with its anchors, made in this process when it is first asked for.

        Raises:
          UserError: as `Rescorer`.
        """
        return _state(self._id, lambda: Rescorer(**self.settings))

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """The batch with `terms`, float32 [n, S], and, of a method that searches, `nearest`.

        A row's numbers are those of the rule (`ida_jax.rescoring.terms`), NaN where it is bad;
        `nearest` is its cosine to the nearest anchor.

        Raises:
          UserError: no such column; bad rows, by their number in the batch; another width.
        """
        rows = matrix(column(batch, self.embedding))
        faces, bad, norms = unit_rows(rows, skip_bad=self.skip_bad, what=self.embedding)
        labels = np.asarray(column(batch, self.label)) if self.label else None
        slabs = [
            self._slab(faces[i : i + _SLAB], bad[i : i + _SLAB], norms[i : i + _SLAB],
                       None if labels is None else labels[i : i + _SLAB])
            for i in range(0, len(faces), _SLAB)
        ]  # fmt: skip
        width = RULES[self.scorer.rule].values
        values = np.concatenate([np.empty((0, width + bool(self.scorer.neighbours))), *slabs])
        values = values.astype(np.float32)
        out = {**batch, "terms": values[:, :width]}
        return {**out, "nearest": values[:, width]} if self.scorer.neighbours else out

    def _slab(
        self, faces: np.ndarray, bad: np.ndarray, norms: np.ndarray, labels: np.ndarray | None
    ) -> np.ndarray:
        count = len(faces)
        if count < _SLAB:
            faces, bad = padded(faces, _SLAB), padded(bad, _SLAB)
            bad[count:] = True
            norms = np.concatenate([norms, np.full(_SLAB - count, np.nan)])
            labels = None if labels is None else padded(labels, _SLAB)
        return slab_terms(self.scorer, faces, bad, norms, labels)[:count]

    def arrow(self, batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        """`__call__` for Spark's mapInArrow: record batches to record batches."""
        return over_arrow(self, batches)


class BatchPairScores:
    """A method's scores of a batch's pairs of faces: `score_pairs` as a column."""

    def __init__(
        self,
        terms: BatchFaceTerms,
        faces: str | os.PathLike[str] | Mapping[str, np.ndarray],
        *,
        first: str = "first",
        second: str = "second",
    ) -> None:
        """A method and the faces whose pairs it scores.

        Args:
          terms: the method.
          faces: what `read_embeddings` reads: of Parquet, a file or a folder, a column `terms` as
            `BatchFaceTerms` wrote it is read too. Or the columns themselves, `embedding`, `terms`
            and `name`. Without `terms` each worker makes them. In the place of `embedding`, `unit`:
            the unit rows of `unit_rows`, given with `terms`.
          first: the column of the pairs' first faces, the enrolled ones where the method cares:
            rows from 0, or names.
          second: of the second ones.
        """
        self.terms, self.first, self.second = terms, first, second
        given = isinstance(faces, str | os.PathLike)
        self.faces = os.path.abspath(faces) if given else dict(faces)
        self._id = uuid.uuid4().hex

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """The batch with `score`, float32 [n]; NaN of a bad face, which never matches.

        On a CPU a score has the same bits in any batch; those of `ida-jax rescore` too, where it
        takes no products of tiles (`ida_jax.rescoring.pairs`) and a chunk is of more than 64 pairs.

        Raises:
          UserError: no such columns; a pair of unknown faces, by its number in the batch.
        """
        faces, terms, lookup = _state(self._id, self._make)
        sides = [np.asarray(column(batch, name)) for name in (self.first, self.second)]
        if all(np.issubdtype(side.dtype, np.integer) for side in sides):
            pairs = np.stack(sides, axis=1)
        elif lookup is None:
            raise UserError("the pairs are names, and the faces have none: give them a column name")
        else:
            pairs = np.stack([lookup(side) for side in sides], axis=1)
            if (unknown := np.argwhere(pairs < 0)).size:
                row, side = unknown[0]
                raise UserError(f"pair {row}: no face is named {str(sides[side][row])!r}")
        pairs = checked_pairs(pairs, len(terms.values)).astype(np.int32, copy=False)
        return {**batch, "score": score_gathered(faces, pairs, terms)}

    def of_chunk(self, pairs: np.ndarray, held: Subset | None = None) -> np.ndarray:
        """float32 [P] of rows int32 [P, 2], by `score_chunk`: the bits of `rescore`'s chunk."""
        faces, terms, _ = _state(self._id, self._make)
        return score_chunk(faces, pairs, terms, held)

    def arrow(self, batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        """`__call__` for Spark's mapInArrow: record batches to record batches."""
        return over_arrow(self, batches)

    def _make(self) -> tuple[jax.Array, FaceTerms, Callable[[Any], np.ndarray] | None]:
        faces = self.faces if isinstance(self.faces, dict) else _read_faces(self.faces)
        scorer = self.terms.scorer
        unit = faces.get("unit")
        if unit is None:
            rows = matrix(faces["embedding"])
            unit = unit_rows(rows, skip_bad=self.terms.skip_bad).embeddings
        values = faces.get("terms")
        if values is None:
            values = self.terms({self.terms.embedding: faces["embedding"]})["terms"]
        values = np.asarray(matrix(values), np.float32).reshape(len(unit), -1)
        terms = FaceTerms(scorer.rule, values, scorer.constants)
        terms.check(len(unit))
        on_device = jax.device_put(filled(unit))
        compile_blocks(on_device, terms)
        names = faces.get("name")
        return on_device, terms, None if names is None else name_lookup(list(names))


def slab_terms(
    scorer: Rescorer,
    faces: np.ndarray,
    bad: np.ndarray,
    norms: np.ndarray,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """`Rescorer.searched_terms` of unit rows of which some are bad: [n, S] or, with `nearest`, S+1.

    Args:
      faces: float32 [n, D]; a bad row is of any value.
      bad: bool [n]; the numbers of a bad row are NaN.
      norms: [n], as `unit_rows` gives them.
      labels: int [n], the identities that are left out of the search; None for none.
    """
    if np.any(bad):
        # A bad face never matches, so that any unit vector can take its place in the search.
        stand_in = np.zeros(faces.shape[1], np.float32)
        stand_in[0] = 1
        faces = np.where(bad[:, None], stand_in, faces)
    if labels is not None:
        labels = np.where(bad, -1, labels)
    terms, nearest = scorer.searched_terms(faces, labels=labels, norms=norms)
    columns = [terms.values] if nearest is None else [terms.values, nearest[:, None]]
    values = np.concatenate(columns, axis=1)
    values[bad] = np.nan
    return values


def over_arrow(
    call: Callable[[Batch], Mapping[str, np.ndarray]], batches: "Iterable[pa.RecordBatch]"
) -> "Iterator[pa.RecordBatch]":
    """A callable of batches over Arrow's record batches, in which a matrix is a column of lists."""
    import pyarrow as pa

    for batch in batches:
        columns = {name: _from_arrow(batch.column(name)) for name in batch.schema.names}
        given = {name: batch.column(name) for name in columns}
        made = call(columns)
        arrays = [
            given[name] if name in given else _to_arrow(np.asarray(value))
            for name, value in made.items()
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=list(made))


def column(batch: Batch, name: str) -> np.ndarray:
    """A column of a batch; a UserError where it has none of the name."""
    if name not in batch:
        raise UserError(f"a batch has the columns {', '.join(batch)}: expected one named {name}")
    return batch[name]


def matrix(rows: Any) -> np.ndarray:
    """Rows of equal length as one array [n, D], as engines give a column of lists or tensors.

    A row that is missing is NaN.

    Raises:
      UserError: rows of different lengths.
    """
    rows = np.asarray(rows)
    if rows.dtype != object:
        return rows
    widths = {len(row) for row in rows if row is not None}
    if len(widths) > 1:
        raise UserError(f"rows of {min(widths)} and of {max(widths)} numbers: expected one length")
    missing = np.full(max(widths, default=0), np.nan, np.float32)
    full = [missing if row is None else np.asarray(row) for row in rows]
    return np.stack(full) if full else np.empty((0, 0), np.float32)


def _state(identity: str, make: Callable[[], Any]) -> Any:
    if identity not in _STATES:
        while len(_STATES) >= _MOST_STATES:
            _STATES.pop(next(iter(_STATES)))
        _STATES[identity] = make()
    return _STATES[identity]


def _read_faces(path: str) -> dict[str, Any]:
    read = read_embeddings(path)
    faces = {"embedding": read.embeddings, "terms": read_column(path, "terms")}
    found = {name: values for name, values in faces.items() if values is not None}
    return found if read.names is None else {**found, "name": read.names}


def _from_arrow(values: "pa.Array") -> np.ndarray:
    from pyarrow import types

    if types.is_list(values.type) or types.is_large_list(values.type):
        return matrix(np.array([*values.to_numpy(zero_copy_only=False), None], object)[:-1])
    if types.is_fixed_size_list(values.type) and not values.null_count:
        flat = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(values), values.type.list_size)
    return values.to_numpy(zero_copy_only=False)


def _to_arrow(values: np.ndarray) -> "pa.Array":
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    ends = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))
