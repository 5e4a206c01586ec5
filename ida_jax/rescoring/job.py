"""Scores of a pair list, from files to a file: streamed, resumable, shared among processes.

The work is cut into parts, one file each, in a hidden folder beside the output:

    faces-00000.npy    the method's numbers of a slab of faces, and their nearest anchors' cosines
    pairs.npy          a text or Parquet pair list as rows
    scores-00000.npy   the scores of a chunk of pairs

A part is written whole, and an existing one is not made again: the same command continues where it
was killed. The parts depend on the input alone, so that any number of processes makes the same
ones. In the end the output is assembled from them and the folder is removed.

Resuming and sharing the work are thus the same thing, making the missing parts; processes need only
a common file system and a barrier.

P pairs, N faces, S numbers of a face.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ida_jax.common.parts import (
    Parts,
    folder_beside,
    is_sealed,
    key_of,
    remove_empty,
    remove_parts,
    seal,
    stamp,
)
from ida_jax.common.processes import OthersFailed, agree, is_first
from ida_jax.common.progress import progress_bar
from ida_jax.common.validation import unit_rows
from ida_jax.rescoring.batch import slab_terms
from ida_jax.rescoring.log_norms import norm_notes
from ida_jax.rescoring.methods import require_same_models
from ida_jax.rescoring.pairs import CHUNK, score_chunk
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
_LAYOUT = 2


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
    """What a finished job did.

    Attributes:
      unmatched: the number of pairs whose score is NaN because of a bad face.
      bad_faces: the number of faces that were zero, NaN or infinite.
      seconds: of the whole job in this process.
      notes: what a reader must know of the norms (`ida_jax.rescoring.log_norms`).
      origin: what the scores were made with, as it is written beside them; None but in the first
        process.
    """

    pairs: int
    unmatched: int
    bad_faces: int
    seconds: float
    notes: tuple[str, ...]
    origin: ScoreOrigin | None = None


def rescore_files(
    inputs: JobFiles,
    output: Path,
    make_scorer: Callable[[int], Rescorer],
    *,
    settings: Sequence[object],
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
    scale: str = "log",
    check_origin: Callable[[ScoreOrigin], None] | None = None,
    skip_bad: bool = False,
    chunk: int = CHUNK,
    key: str | None = None,
    make_engine: "Callable[[int], RayEngine] | None" = None,
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
      make_engine: the number of faces to what makes the parts in this process' place, if anything.

    Warns on standard error where the faces' people seem to be among the anchors.

    Raises:
      UserError: a mistake in a file, named; embeddings of another model than the scorer's; an
        output that cannot be written.
    """
    start = time.perf_counter()
    check_output(output)
    require_table(inputs.pairs, what="pairs")
    keys = None if key is None else KeyColumn(inputs.pairs, key)
    embeddings, names, fingerprint = read_embeddings(inputs.embeddings, names=inputs.names)
    faces, bad, norms = unit_rows(embeddings, skip_bad=skip_bad, place=row_place(inputs.embeddings))
    del embeddings
    scorer = make_scorer(len(faces))
    engine = None if make_engine is None else make_engine(len(faces))
    require_same_models(inputs.embeddings, fingerprint, [scorer])
    origin = scorer.origin(model=fingerprint)
    if check_origin is not None:
        check_origin(origin)
    origin = replace(origin, scale=scale)
    own = None
    if inputs.labels is not None:
        own = own_labels(inputs.labels, scorer.anchors, len(faces))
    listed = None
    if not _needs_conversion(inputs.pairs, names):
        listed = PairFile(inputs.pairs)
        listed.check(len(faces))
    files = [stamp(path) for path in inputs if path is not None]
    parts_key = key_of([[*settings, skip_bad, chunk], files, _LAYOUT])
    folder = folder_beside(output, parts_key)
    try:
        if listed is None:
            path = folder / "pairs.npy"
            if is_first() and not is_sealed(path):
                if path.is_file():
                    print(f"{path} is damaged or not finished: it is made again", file=sys.stderr)
                with _bar(source_size(inputs.pairs), "pair list", "B") as bar:
                    convert_pairs(
                        inputs.pairs,
                        path,
                        names=names,
                        rows=len(faces),
                        key=key,
                        progress=bar.update,
                    )
                seal(path)
            agree()
            listed = PairFile(path)
        terms, nearest = _face_terms(folder, faces, bad, norms, scorer, own, engine)
        if is_first() and nearest is not None:
            known = np.zeros(0, bool)
            if inputs.labels is None:
                known = known_people(inputs.embeddings, names, scorer.anchors)
            shared = shared_people(nearest, scorer.anchors, labels=own, known=known)
            origin = replace(origin, shared=shared)
            if warning := shared_warning(shared, scorer.anchors):
                print(f"warning: {inputs.embeddings}: {warning}", file=sys.stderr)
        parts = Parts(folder, listed.count, chunk, name="scores-{number:05d}.npy")
        left = parts.left(jax.process_index(), jax.process_count())
        # Only this process's share, so that the rate and the remaining time are right.
        with _bar(sum(len(part.rows) for part in left), "pairs", "pair") as bar:
            if engine is not None:
                given = {"unit": faces, "terms": terms.values}
                engine.score_parts(left, given, listed.path, finish, bar.update)
                left = []
            on_device = jax.device_put(faces) if left else None
            del faces
            for rows, path in left:
                scores = score_chunk(on_device, listed.read(rows.start, rows.stop), terms)
                parts.write(path, scores if finish is None else finish(scores))
                del scores  # no array of a chunk outlives it
                bar.update(len(rows))
        agree()
        unmatched = 0

        def finished() -> Iterator[np.ndarray]:
            nonlocal unmatched
            for scores in parts.values():
                unmatched += int(np.count_nonzero(np.isnan(scores)))
                yield scores

        if is_first():
            write_scores(output, finished(), listed.count, origin, keys=keys)
            remove_parts(output)
        agree()
    except Exception as error:
        remove_empty(folder)
        if not isinstance(error, OthersFailed):
            agree(ok=False)
        raise
    return Summary(
        listed.count,
        unmatched,
        int(np.sum(bad)),
        time.perf_counter() - start,
        norm_notes([scorer], norms),
        origin if is_first() else None,
    )


def _face_terms(
    folder: Path,
    faces: np.ndarray,
    bad: np.ndarray,
    norms: np.ndarray,
    scorer: Rescorer,
    own: np.ndarray | None,
    engine: "RayEngine | None",
) -> tuple[FaceTerms, np.ndarray | None]:
    """The faces' terms, and their cosines to the nearest anchor, [N]; None without a search.

    Args:
      own: int [N], the identities that are left out of the search; None for none.
    """
    parts = Parts(folder, len(faces), _FACE_SLAB, name="faces-{number:05d}.npy")
    left = parts.left(jax.process_index(), jax.process_count())
    with _bar(sum(len(part.rows) for part in left), "faces", "face") as bar:
        given = {"faces": faces, "bad": bad, "norms": norms, "labels": own}
        if engine is not None:
            engine.face_parts(left, given, bar.update)
            left = []
        for rows, path in left:
            slab = {
                name: None if values is None else values[rows.start : rows.stop]
                for name, values in given.items()
            }
            parts.write(path, slab_terms(scorer, **slab))
            bar.update(len(rows))
    agree()
    values = np.concatenate(list(parts.values()))
    values[bad] = np.nan
    nearest = None
    if scorer.neighbours:
        values, nearest = np.ascontiguousarray(values[:, :-1]), values[:, -1].copy()
    return FaceTerms(scorer.rule, values, scorer.constants), nearest


def _needs_conversion(pairs: Path, names: Sequence[str] | None) -> bool:
    if pairs.suffix.lower() != ".npy" or pairs.is_dir():
        return True
    return names is not None and open_npy(pairs, what="pairs").dtype.kind == "U"


def _bar(total: int, title: str, unit: str) -> tqdm:
    return progress_bar(
        total=total, desc=title, unit=unit, unit_scale=True, delay=2, leave=False,
        disable=not is_first(),
    )  # fmt: skip
