"""Scores of a pair list, from files to a file: streamed, resumable, in shards.

The work is cut into parts, one file each, in a hidden folder beside the output:

    faces-00000.npy    the method's numbers of a slab of faces, and their nearest anchors' cosines
    pairs.npy          a text or Parquet pair list as rows
    scores-00000.npy   the scores of a chunk of pairs

A part is written whole, and an existing one is not made again: the same command continues where it
was killed. The parts depend on the input alone, so that any number of shards makes the same ones.
In the end the output is assembled from them and the folder is removed.

A shard makes the scores of its own chunks. Of what all of them need, the first makes the list as
rows, while the others wait, and each the faces' numbers as far as they are not there yet, of slabs
that its pairs name.

P pairs, N faces, D embedding, S numbers of a face, n faces that the pairs of a job or a shard name.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ida_jax.common.parts import (
    Parts,
    Shard,
    cut,
    folder_beside,
    is_sealed,
    key_of,
    place_beside,
    remove_empty,
    remove_parts,
    stamp,
)
from ida_jax.common.progress import progress_bar
from ida_jax.common.shards import (
    in_turn,
    made_once,
    note_shard,
    refuse_other_shards,
    require_all,
    require_shards,
)
from ida_jax.common.validation import UnitRows, unit_rows
from ida_jax.rescoring.batch import slab_terms
from ida_jax.rescoring.log_norms import norm_notes
from ida_jax.rescoring.methods import require_same_models
from ida_jax.rescoring.pairs import CHUNK, Subset, score_chunk
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.shared_people import (
    known_people,
    own_labels,
    shared_people,
    shared_warning,
)
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.blocks import open_npy
from ida_jax.tables.embeddings import read_embeddings
from ida_jax.tables.pair_keys import KeyColumn
from ida_jax.tables.pair_lists import PairFile, convert_pairs, source_size
from ida_jax.tables.parquet_files import require_table, row_place
from ida_jax.tables.score_origin import ScoreOrigin
from ida_jax.tables.score_output import check_output, write_scores

if TYPE_CHECKING:
    from ida_jax.rescoring.ray_engine import RayEngine

_FACE_SLAB = 4096
# Of the parts: those of another layout are not continued.
_LAYOUT = 3


class JobFiles(NamedTuple):
    """The files of a job.

    Attributes:
      embeddings: [N, D], .npy, .npz or .parquet, or a folder of such parts.
      pairs: [P, 2], .npy, .csv, .tsv or .parquet, rows of the embeddings or names.
      names: one name per line, in the embeddings' order; None where pairs are rows, or where the
        embeddings' file has names.
      labels: who is on each face, .npy or text of N integers or names; None where unknown. A face's
        own identity is left out of its support set or cohort.
    """

    embeddings: Path
    pairs: Path
    names: Path | None = None
    labels: Path | None = None


class Summary(NamedTuple):
    """What a finished job, or a shard, did.

    Attributes:
      pairs: of the list, or of the shard.
      unmatched: the number of pairs whose score is NaN because of a bad face; 0 of a shard.
      bad_faces: the number of faces in the pairs that were zero, NaN or infinite.
      seconds: of the whole job in this process.
      notes: what a reader must know of the norms (`ida_jax.rescoring.log_norms`).
      origin: what the scores were made with, as it is written beside them.
    """

    pairs: int
    unmatched: int
    bad_faces: int
    seconds: float
    notes: tuple[str, ...]
    origin: ScoreOrigin


def rescore_files(
    inputs: JobFiles,
    output: Path,
    make_scorer: Callable[[int], Rescorer],
    *,
    settings: Mapping[str, object],
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
    scale: str = "log",
    check_origin: Callable[[ScoreOrigin], None] | None = None,
    skip_bad: bool = False,
    chunk: int = CHUNK,
    key: str | None = None,
    make_engine: "Callable[[int], RayEngine] | None" = None,
    shard: Shard | None = None,
    join: bool = False,
) -> Summary:
    """Writes one score per pair, in the pairs' order; the output appears whole or not at all.

    Args:
      output: .npy, .csv or .parquet; without a suffix, a folder of .parquet parts.
      make_scorer: the number of faces to the method with its anchors.
      settings: JSON-able, everything else that the scores depend on (the method's options, the
        files that the scorer was read from): an interrupted job continues only with the same ones.
      finish: maps a chunk's scores to the scale that is written.
      scale: that scale's name.
      check_origin: called before the work with what the scores, before `finish`, will be made with.
      skip_bad: gives NaN to pairs with a zero, NaN or infinite embedding instead of refusing them.
      chunk: pairs scored at once; it changes the last bits of scores.
      key: a column of the pairs that is written before the scores.
      make_engine: the number of faces to what makes the parts in this process' place, if anything;
        neither with `shard` nor with `join`.
      shard: makes the parts of this share, and no output.
      join: makes no scores: the shards' must be there.

    Warns on standard error where the faces' people seem to be among the anchors.

    Raises:
      UserError: a mistake in a file, named; embeddings of another model than the scorer's; an
        output that cannot be written; shards of other settings there; with `join`, shards that are
        not finished.
    """
    start = time.perf_counter()
    check_output(output)
    require_table(inputs.pairs, what="pairs")
    keys = None if key is None else KeyColumn(inputs.pairs, key)
    embeddings, names, fingerprint = read_embeddings(inputs.embeddings, names=inputs.names)
    scorer = make_scorer(len(embeddings))
    engine = None if make_engine is None else make_engine(len(embeddings))
    require_same_models(inputs.embeddings, fingerprint, [scorer])
    origin = scorer.origin(model=fingerprint)
    if check_origin is not None:
        check_origin(origin)
    origin = replace(origin, scale=scale)
    own = None
    if inputs.labels is not None:
        own = own_labels(inputs.labels, scorer.anchors, len(embeddings))
    files = {what: stamp(path) for what, path in inputs._asdict().items() if path is not None}
    settings = {**settings, **files, "skip_bad": skip_bad, "chunk": chunk, "layout": _LAYOUT}
    parts_key = key_of(settings)
    refuse_other_shards(output, place_beside(output, parts_key), settings)
    if join:
        require_shards(output, place_beside(output, parts_key))
    folder = folder_beside(output, parts_key)
    try:
        listed = _listed(inputs.pairs, folder / "pairs.npy", names, len(embeddings), key, shard)
        parts = Parts(folder, listed.count, chunk, name="scores-{number:05d}.npy")
        if join:
            require_all(parts, output)
        share = parts.share(shard)
        if not share:
            note_shard(folder, shard, settings)
            return Summary(0, 0, 0, time.perf_counter() - start, (), origin)
        mine = range(share[0].rows.start, share[-1].rows.stop) if share else range(0)
        which = Subset.of(listed.check(len(embeddings), mine))
        if not join:
            faces = _read_faces(embeddings, which, skip_bad, row_place(inputs.embeddings))
        else:
            noted = skip_bad or scorer.quality_fit is not None
            faces = _read_no_faces(embeddings, which, norms=noted)
        if which is None and not join:
            embeddings = None  # what is not a map of its file is not held twice
        if shard is not None:
            note_shard(folder, shard, settings)
        terms, nearest = _face_terms(folder, embeddings, faces, scorer, own, shard, engine)
        if nearest is not None:
            known = np.zeros(0, bool)
            if inputs.labels is None:
                known = known_people(inputs.embeddings, names, scorer.anchors)
            labels = None if own is None else faces.of(own)
            known = faces.of(known) if len(known) == faces.count else known
            shared = shared_people(nearest, scorer.anchors, labels=labels, known=known)
            origin = replace(origin, shared=shared)
            if warning := shared_warning(shared, scorer.anchors):
                print(f"warning: {inputs.embeddings}: {warning}", file=sys.stderr)
        bad, norms, unit = faces.bad, faces.norms, faces.embeddings
        del faces
        left = parts.left(shard)
        # What is left, so that the rate and the remaining time are right.
        with _bar(sum(len(part.rows) for part in left), "pairs", "pair") as bar:
            if engine is not None:
                given = {"unit": unit, "terms": terms.values}
                given |= {} if which is None else which._asdict()
                engine.score_parts(left, given, listed.path, finish, bar.update)
                left = []
            on_device = jax.device_put(unit) if left else None
            del unit
            for rows, path in left:
                pairs = listed.read(rows.start, rows.stop)
                scores = score_chunk(on_device, pairs, terms, which)
                parts.write(path, scores if finish is None else finish(scores))
                del scores, pairs  # no array of a chunk outlives it
                bar.update(len(rows))
        unmatched = 0

        def finished() -> Iterator[np.ndarray]:
            nonlocal unmatched
            for scores in parts.values():
                unmatched += int(np.count_nonzero(np.isnan(scores)))
                yield scores

        if shard is None:
            write_scores(output, finished(), listed.count, origin, keys=keys)
            remove_parts(output)
    except Exception:
        if shard is None:
            remove_empty(folder)
        else:
            with contextlib.suppress(OSError):  # what is in it is the other shards' too
                folder.rmdir()
        raise
    seconds = time.perf_counter() - start
    notes = norm_notes([scorer], norms)
    return Summary(len(mine), unmatched, int(np.sum(bad)), seconds, notes, origin)


def _listed(
    source: Path,
    converted: Path,
    names: Sequence[str] | None,
    faces: int,
    key: str | None,
    shard: Shard | None,
) -> PairFile:
    """The pairs as rows; a list in text, in Parquet or of names is turned into them first."""

    def convert(lives: Callable[[], None] = lambda: None) -> None:
        def progress(read: int) -> None:
            bar.update(read)
            lives()

        with _bar(source_size(source), "pair list", "B") as bar:
            convert_pairs(
                source, converted, names=names, rows=faces, key=key, progress=progress, sealed=True
            )

    if not _needs_conversion(source, names):
        return PairFile(source)
    if not is_sealed(converted):
        if converted.is_file():
            print(f"{converted} is damaged or not finished: it is made again", file=sys.stderr)
        if shard is None:
            convert()
        else:
            made_once(converted, convert, done=lambda: is_sealed(converted))
    return PairFile(converted)


class _Faces(NamedTuple):
    """The faces that a job's or a shard's pairs name, n of the N of a file.

    Attributes:
      count: N.
      which: which these are; all if None.
      embeddings: float32 [n, D], unit rows; None where nothing is to be scored.
      bad: bool [n].
      norms: float64 [n], NaN of a bad one.
    """

    count: int
    which: Subset | None
    embeddings: np.ndarray | None
    bad: np.ndarray
    norms: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """int64 [n]: theirs in the file."""
        return np.arange(self.count) if self.which is None else self.which.rows

    def of(self, values: np.ndarray) -> np.ndarray:
        """Of values [N] those of these faces."""
        return values if self.which is None else values[self.which.rows]


def _read_faces(
    embeddings: np.ndarray,
    which: Subset | None,
    skip_bad: bool,
    place: Callable[[int], str] | None,
) -> _Faces:
    """Reads these faces, and no others.

    Args:
      place: as in `unit_rows`.

    Raises:
      UserError: bad ones, unless they are skipped.
    """
    rows = None if which is None else which.rows
    unit = unit_rows(embeddings, rows=rows, skip_bad=skip_bad, place=place)
    return _Faces(len(embeddings), which, *unit)


def _read_no_faces(embeddings: np.ndarray, which: Subset | None, *, norms: bool) -> _Faces:
    """These faces without their embeddings; with which are bad, and their norms, where asked."""
    count = len(embeddings) if which is None else len(which.rows)
    empty = np.zeros(count, bool), np.full(count, np.nan)
    faces = _Faces(len(embeddings), which, None, *empty)
    for slab in cut(count, _FACE_SLAB) if norms else ():
        some = slice(slab.start, slab.stop)
        unit = unit_rows(embeddings, rows=faces.rows[some], skip_bad=True)
        faces.bad[some], faces.norms[some] = unit.bad, unit.norms
    return faces


def _face_terms(
    folder: Path,
    embeddings: np.ndarray | None,
    faces: _Faces,
    scorer: Rescorer,
    own: np.ndarray | None,
    shard: Shard | None,
    engine: "RayEngine | None",
) -> tuple[FaceTerms, np.ndarray | None]:
    """The faces' terms, and their cosines to the nearest anchor, [n]; None without a search.

    Slabs of the file's rows are searched as wholes, so that the parts are the same whatever the
    pairs are; those of which no pair needs a face are not.

    Args:
      embeddings: [N, D], of any norm; None where all of them are in `faces`.
      own: int [N], the identities that are left out of the search; None for none.
    """
    parts = Parts(folder, faces.count, _FACE_SLAB, name="faces-{number:05d}.npy")
    every, rows = list(parts), faces.rows
    needed = [every[number] for number in np.unique(rows // _FACE_SLAB).tolist()]
    with _bar(sum(len(part.rows) for part in needed), "faces", "face") as bar:
        left = in_turn(needed, shard)
        if engine is not None:
            whole = _slab(embeddings, faces, range(faces.count))
            given = {"faces": whole.embeddings, "bad": whole.bad, "norms": whole.norms}
            missing = [part for part in left if not parts.has(part)]
            engine.face_parts(missing, {**given, "labels": own}, bar.update)
            left = []
        for part in left:
            if not parts.has(part):
                labels = None if own is None else own[part.rows.start : part.rows.stop]
                slab = _slab(embeddings, faces, part.rows)
                parts.write(part.path, slab_terms(scorer, *slab, labels))
            bar.update(len(part.rows))
    made = []
    for part in needed:
        first, last = np.searchsorted(rows, (part.rows.start, part.rows.stop))
        made.append(parts.read(part.path)[rows[first:last] - part.rows.start])
    values = np.concatenate(made)
    values[faces.bad] = np.nan
    nearest = None
    if scorer.neighbours:
        values, nearest = np.ascontiguousarray(values[:, :-1]), values[:, -1].copy()
    return FaceTerms(scorer.rule, values, scorer.constants), nearest


def _slab(embeddings: np.ndarray | None, faces: _Faces, rows: range) -> UnitRows:
    if embeddings is not None:
        return unit_rows(embeddings, rows=np.arange(rows.start, rows.stop), skip_bad=True)
    some = slice(rows.start, rows.stop)
    return UnitRows(faces.embeddings[some], faces.bad[some], faces.norms[some])


def _needs_conversion(pairs: Path, names: Sequence[str] | None) -> bool:
    if pairs.suffix.lower() != ".npy" or pairs.is_dir():
        return True
    return names is not None and open_npy(pairs, what="pairs").dtype.kind == "U"


def _bar(total: int, title: str, unit: str) -> tqdm:
    return progress_bar(
        total=total, desc=title, unit=unit, unit_scale=True, delay=2, leave=False
    )  # fmt: skip
