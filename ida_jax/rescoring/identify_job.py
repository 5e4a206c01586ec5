"""Identification from files: probes searched in a stored gallery, streamed and resumable.

The candidates of 512 probes are a part, a file in a hidden folder beside the output: the same
command continues where it was killed. A gallery that was changed meanwhile is another one, and its
search begins anew.

M probes.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ida_jax.artefacts.calibration import Calibration
from ida_jax.common.errors import UserError
from ida_jax.common.parts import Parts, folder_beside, key_of, remove_empty, remove_parts, stamp
from ida_jax.common.progress import progress_bar
from ida_jax.metrics.identification import RANKS, Searches, mate_ranks, search_figures
from ida_jax.rescoring.batch import slab_terms
from ida_jax.rescoring.face_files import Bad, Faces
from ida_jax.rescoring.gallery import Gallery, identify
from ida_jax.rescoring.gallery_file import LIST, GalleryFile
from ida_jax.rescoring.methods import require_same_models
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.tables.candidate_output import CandidateLines, write_candidates

_PROBES = 512
# Parts that are written at once.
_WRITTEN = 64


class Wanted(NamedTuple):
    """What is written of each probe's candidates.

    Attributes:
      top: how many at most; 10, or as many as there are, if None.
      threshold: only scores above it; all if None.
      unknown: a line for each probe that has none.
      calibration: what gives probabilities, of a pair at even odds; None for none.
    """

    top: int | None = None
    threshold: float | None = None
    unknown: bool = False
    calibration: Calibration | None = None


class Identified(NamedTuple):
    """What an identification did.

    Attributes:
      probes: M.
      faces: of the gallery.
      unknown: probes without a score above the threshold.
      bad: probes that are zero, NaN or infinite, which have no candidates.
      images: how many such images were left out of templates.
      figures: open-set figures (`search_figures`), of labelled probes; None of others.
      seconds: of the whole job.
    """

    probes: int
    faces: int
    unknown: int
    bad: int
    images: int
    figures: dict[str, Any] | None
    seconds: float


def identify_faces(
    file: GalleryFile,
    probes: Faces,
    scorer: Rescorer,
    output: Path,
    *,
    wanted: Wanted,
    settings: Sequence[object],
    labels: Sequence[str] | None = None,
    fpirs: Sequence[float] = (),
) -> Identified:
    """Writes each probe's candidates; the output appears whole or not at all.

    Args:
      scorer: what the gallery was made with.
      output: .parquet or .csv.
      settings: JSON-able, what else the scores depend on (files): an interrupted job continues only
        with the same.
      labels: M, who is on each probe, a name of the gallery or of somebody who is not in it.
      fpirs: where TPIRs are given, of labelled probes.

    Raises:
      UserError: an empty gallery, `top` beyond it, one of another method, k, τ, anchors or model;
        bad probes, named, unless they are skipped; labels of which none is in the gallery.
    """
    start = time.perf_counter()
    if not len(file):
        raise UserError(f"{file.folder} holds no faces: enrol some (ida-jax enrol)")
    require_same_models(probes.path, probes.fingerprint, [scorer])
    file.check_origin(scorer.origin(model=probes.fingerprint), whose=str(probes.path))
    gallery = Gallery(file.embeddings, file.terms, file.enrolled, file.names, file.origin)
    top = min(10, len(gallery)) if wanted.top is None else wanted.top
    if not 1 <= top <= len(gallery):
        raise UserError(f"--top={top}: expected 1 … {len(gallery)}, the faces in {file.folder}")
    mates = None if labels is None else file.find(labels)
    if mates is not None and not (mates >= 0).any():
        raise UserError(
            f"no label is a name in {file.folder} ({labels[0]!r} is not): label probes by the "
            "names that were enrolled"
        )
    count = len(probes)
    bad = probes.bad() if probes.skip_bad else Bad(np.zeros(count, bool), 0)
    read = [stamp(file.folder / LIST), stamp(probes.path), *settings, top, labels, probes.skip_bad]
    key = key_of(read)
    folder = folder_beside(output, key)
    parts = Parts(folder, count, _PROBES, name="candidates-{number:06d}.npy")

    def search(rows: range) -> np.ndarray:
        unit = probes.unit(np.arange(rows.start, rows.stop))
        unit.embeddings[unit.bad] = 0
        values = slab_terms(scorer, *unit)[:, : RULES[scorer.rule].values]
        terms = FaceTerms(scorer.rule, values, scorer.constants)
        found = identify(unit.embeddings, terms, gallery, top=top, precision=scorer.precision)
        kind = [("score", "<f4", (top,)), ("row", "<i8", (top,)), ("mate", "<f4")]
        made = np.zeros(len(rows), kind)
        made["score"], made["row"] = found
        if mates is not None:
            own = mates[rows.start : rows.stop]
            made["mate"] = _mate_scores(unit.embeddings, terms, gallery, own)
            at = (found.rows == own[:, None]) & ~unit.bad[:, None]
            made["mate"][at.any(axis=1)] = found.scores[at]
        made[unit.bad] = (-np.inf, -1, -np.inf)  # below every score, with nobody
        return made

    unknown, whole = 0, []

    def lines() -> Iterator[CandidateLines]:
        nonlocal unknown
        with progress_bar(total=count, desc="probes", unit="probe", delay=2, leave=False) as bar:
            values, first = parts.values(search), 0
            while made := list(islice(values, _WRITTEN)):
                found = np.concatenate(made)
                rows = np.arange(first, first + len(found))
                written, without = _lines(found, rows, probes, gallery, wanted)
                unknown, first = unknown + without, first + len(found)
                if mates is not None:
                    ranks = mate_ranks(found["row"], mates[rows])
                    whole.append(np.stack([found["mate"], ranks, found["score"][:, 0]]))
                bar.update(len(found))
                yield written

    try:
        write_candidates(
            output,
            lines(),
            named=probes.names is not None,
            probability=wanted.calibration is not None,
            origin=file.origin,
        )
    except Exception:
        remove_empty(folder)
        raise
    remove_parts(output)
    figures = None
    if mates is not None:
        figures = _figures(np.concatenate(whole, axis=1), mates >= 0, top, fpirs)
    seconds = time.perf_counter() - start
    skipped = int(np.count_nonzero(bad.faces))
    return Identified(count, len(gallery), unknown, skipped, bad.images, figures, seconds)


def _mate_scores(
    probes: np.ndarray, terms: FaceTerms, gallery: Gallery, mates: np.ndarray
) -> np.ndarray:
    """Each probe's score with its mate, float32 [M]; −inf of those without one (row −1)."""
    rows = np.maximum(mates, 0)
    faces = gallery.embeddings[rows].astype(np.float32)
    scores = RULES[terms.rule].score(
        *jax.device_put(
            (
                np.einsum("md,md->m", probes, faces),
                np.asarray(gallery.terms.values)[rows],
                np.asarray(terms.values),
                np.asarray(terms.constants),
            )
        )
    )
    return np.where(mates >= 0, scores, np.float32(-np.inf))


def _lines(
    found: np.ndarray, rows: np.ndarray, probes: Faces, gallery: Gallery, wanted: Wanted
) -> tuple[CandidateLines, int]:
    """The lines of some probes, and how many of these have no candidate."""
    scores = found["score"]
    above = np.isfinite(scores)
    if wanted.threshold is not None:
        above &= scores > np.float32(wanted.threshold)
    without = ~above.any(axis=1)
    chosen = above.copy()
    if wanted.unknown:
        chosen[without, 0] = True
    probe, place = np.nonzero(chosen)
    known = above[probe, place]
    score = scores[probe, place]
    score[np.isinf(score)] = np.nan  # of a bad probe
    names = gallery.names_of(np.where(known, found["row"][probe, place], -1))
    probability = None
    if wanted.calibration is not None:
        probability = wanted.calibration.percent(score) / np.float32(100)
    own = rows[probe]
    if probes.names is not None:
        own = np.array([probes.names[row] for row in own.tolist()], object)
    rank = np.where(known, place + 1, 0).astype(np.int32)
    return CandidateLines(own, rank, names, score, probability), int(without.sum())


def _figures(
    found: np.ndarray, mated: np.ndarray, top: int, fpirs: Sequence[float]
) -> dict[str, Any]:
    """Open-set figures, and rank-k as far as `top`; rank-k alone where all probes are mated.

    Args:
      found: [3, M], each probe's score with its mate, the mate's rank, the highest score.
      mated: bool [M].
    """
    ranks = [rank for rank in RANKS if rank <= top]
    searches = Searches(found[0, mated], found[1, mated], found[2, ~mated])
    if not mated.all():
        return search_figures(searches, fpirs=fpirs, ranks=ranks)
    return {
        "mated_probes": found.shape[1],
        "nonmated_probes": 0,
        "rank": {str(rank): float(np.mean(searches.rank <= rank)) for rank in ranks},
    }
