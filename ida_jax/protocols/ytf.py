"""YouTube Faces: 10-fold accuracy of every method on pairs of videos, in two modes.

- ytf_mean_feature: a video is the mean of all its frames' unit embeddings, normalised. IDA takes
  the density of that mean, IDA-Q the norm of the mean of the frames' raw embeddings.
- ytf_first100_pairs: the mean score over all pairs of the first 100 frames of either video. IDA
  scores each pair of frames by their own densities.

A pair's score does not depend on the other pairs, but for rounding.

    splits.txt    fold, index, PERSON/VIDEO, PERSON/VIDEO, same (1 or 0)
    frames        named PERSON/VIDEO/FRAME, in any folders

P pairs, V videos, N frames, D embedding.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.common.devices import block_size, padded
from ida_jax.common.errors import UserError
from ida_jax.common.files import file_inside
from ida_jax.common.progress import progress_bar
from ida_jax.common.validation import unit_embeddings, unit_rows
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.protocols import face_blocks
from ida_jax.protocols.face_blocks import fixed_blocks
from ida_jax.protocols.table import (
    LeftOut,
    NoOptions,
    Protocol,
    Request,
    left_out,
    people_by_folder,
    register,
    required_names,
)
from ida_jax.protocols.verification import kfold_figures
from ida_jax.rescoring.methods import labels_among_anchors
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import Side, tile_scores
from ida_jax.tables.text import canonical, delimiter_of, split_fields, text_lines

PAIRS = 5000
_FIRST = 100
_DIGITS = re.compile("([0-9]+)")


class VideoPairs(NamedTuple):
    """YTF's list.

    Attributes:
      videos: the V videos of the pairs, sorted.
      people: int32 [V], the videos' people, from 0.
      pairs: int32 [P, 2], places in `videos`.
      same: bool [P], whether a pair is genuine.
    """

    videos: tuple[str, ...]
    people: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class Frames(NamedTuple):
    """The frames of videos.

    Attributes:
      rows: int64, rows of the N frames, video by video, in the natural order of the frames' names
        (1.2.jpg before 1.10.jpg).
      starts: int64 [V + 1], the places in `rows` where videos begin, and where the last one ends.
    """

    rows: np.ndarray
    starts: np.ndarray

    def of(self, video: int) -> np.ndarray:
        """The rows of a video's frames."""
        return self.rows[self.starts[video] : self.starts[video + 1]]


class _Videos(NamedTuple):
    """What both modes take of the frames.

    Attributes:
      means: float32 [V, D], unit rows.
      norms: float64 [V], that of the mean of a video's frames as they were given, not normalised:
        the scale on which a face's norm is.
      first: the rows of each video's first frames.
    """

    means: np.ndarray
    norms: np.ndarray
    first: list[np.ndarray]
    skipped: int


def evaluate_ytf(
    embeddings: np.ndarray,
    frames: Frames,
    listed: VideoPairs,
    scorers: Mapping[str, Rescorer],
    *,
    skip_bad: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """{mode: accuracy ± deviation, EER and ROC of each method}.

    Intervals are of the bootstrap over people, each fold's threshold as it was found; gains over
    the cosine are paired.

    People who are among named anchors are left out of their own support sets.

    Args:
      embeddings: [N, D] floating point, rows of any norm; may be memory-mapped.
      scorers: a Rescorer a method, under its name in the figures.
      skip_bad: leaves out frames that are zero, NaN or infinite, and counts them, instead of
        raising.

    Raises:
      UserError: bad frames, named by row; a video without a good one.
    """
    videos = _videos(embeddings, frames, listed.videos, skip_bad)
    own = labels_among_anchors([video.split("/")[0] for video in listed.videos], scorers)
    terms = _terms([videos.means], *videos.means.shape, scorers, own, videos.norms)
    scores = {
        "ytf_mean_feature": pair_scores(videos.means, listed.pairs, terms),
        "ytf_first100_pairs": _frame_scores(embeddings, videos.first, listed.pairs, scorers, own),
    }
    notes = []
    if len(listed.pairs) != PAIRS:
        notes.append(f"{len(listed.pairs):,} pairs were scored, YTF's own list has {PAIRS:,}")
    if videos.skipped:
        notes.append(f"{videos.skipped:,} frames that are zero, NaN or infinite were left out")
    return {
        mode: kfold_figures(
            of,
            listed.same,
            listed.fold,
            listed.people[listed.pairs],
            over="people",
            resamples=resamples,
            seed=seed,
        )._replace(notes=tuple(notes))
        for mode, of in scores.items()
    }


def _videos(
    embeddings: np.ndarray, frames: Frames, names: Sequence[str], skip_bad: bool
) -> _Videos:
    means = np.empty((len(names), embeddings.shape[1]), np.float32)
    raw_norms, first, skipped = np.empty(len(names)), [], 0
    for video in progress_bar(range(len(names)), desc="videos", unit="video", delay=2, leave=False):
        rows = frames.of(video)
        unit = unit_rows(embeddings[rows], skip_bad=True, what="frames")
        if unit.bad.any() and not skip_bad:
            raise UserError(
                f"frames: row {rows[unit.bad][0]}, of {names[video]}, is zero, NaN or infinite: "
                "leave it out, or embed it again"
            )
        skipped += int(np.count_nonzero(unit.bad))
        good = unit.embeddings[~unit.bad].astype(np.float64)
        norm = np.linalg.norm(np.mean(good, axis=0)) if len(good) else 0.0
        if not norm > 0:
            raise UserError(
                f"video {names[video]} has {len(good)} good frames with a mean of {norm:g}: it "
                "can't be scored; embed it again"
            )
        means[video] = np.mean(good, axis=0) / norm
        raw_norms[video] = np.linalg.norm(unit.norms[~unit.bad] @ good / len(good))
        first.append(rows[~unit.bad][:_FIRST])
    return _Videos(means, raw_norms, first, skipped)


def _terms(
    blocks: Iterable[np.ndarray],
    count: int,
    width: int,
    scorers: Mapping[str, Rescorer],
    own: np.ndarray | None,
    norms: np.ndarray | None = None,
) -> dict[str, FaceTerms]:
    """Each method's terms of all faces of the blocks, rows of any norm.

    `own` has each face's label among the anchors, which are then left out; `norms` the norms that
    count in place of the rows' own.
    """
    block = block_size(face_blocks.SIZES, count)
    values: dict[str, list[np.ndarray]] = {name: [] for name in scorers}
    done = 0
    with progress_bar(total=count, desc="densities", unit="face", delay=2, leave=False) as progress:
        for frames in fixed_blocks(blocks, width=width, block=block, reach=count, what="frames"):
            labels = None
            if own is not None:
                labels = np.full(len(frames.faces), -1, np.int32)
                labels[: frames.count] = own[done : done + frames.count]
            block_norms = frames.norms
            if norms is not None:
                block_norms[: frames.count] = norms[done : done + frames.count]
            for name, scorer in scorers.items():
                terms = scorer.terms(frames.faces, labels=labels, norms=block_norms)
                values[name].append(terms.values[: frames.count])
            done += frames.count
            progress.update(frames.count)
    return {
        name: FaceTerms(scorer.rule, np.concatenate(values[name]), scorer.constants)
        for name, scorer in scorers.items()
    }


def _frame_scores(
    embeddings: np.ndarray,
    first: Sequence[np.ndarray],
    pairs: np.ndarray,
    scorers: Mapping[str, Rescorer],
    own: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """The mean score over all pairs of two videos' first frames, float32 [P] by method."""
    starts = np.cumsum([0] + [len(rows) for rows in first])
    blocks = (embeddings[rows] for rows in first)
    of_frames = None if own is None else np.repeat(own, np.diff(starts))
    terms = _terms(blocks, int(starts[-1]), embeddings.shape[1], scorers, of_frames)
    scores = {name: np.empty(len(pairs), np.float32) for name in scorers}

    def side(video: int) -> Side:
        rows = slice(starts[video], starts[video + 1])
        return Side(
            padded(unit_embeddings(embeddings[first[video]], what="frames"), _FIRST),
            {
                name: own._replace(values=padded(own.values[rows], _FIRST))
                for name, own in terms.items()
            },
        )

    for place, videos in enumerate(
        progress_bar(pairs.tolist(), desc="frames", unit="pair", delay=2, leave=False)
    ):
        # One pair of videos at a time in one shape: nothing compiles anew or hangs on a batch.
        counts = np.int32([len(first[video]) for video in videos])
        for name, mean in _mean_scores(*map(side, videos), counts).items():
            scores[name][place] = mean
    return scores


@jax.jit
def _mean_scores(first: Side, second: Side, counts: jax.Array) -> dict[str, jax.Array]:
    """{method: the mean of its scores of the first counts[0] and counts[1] frames}."""
    row, column = (jnp.arange(_FIRST) < count for count in counts)
    inside = row[:, None] & column[None, :]
    number = (counts[0] * counts[1]).astype(jnp.float32)
    return {
        name: jnp.sum(jnp.where(inside, scores, 0)) / number
        for name, scores in tile_scores(first, second)
    }


class _Listed(NamedTuple):
    """The videos' frames, the list without the pairs left out of it, and those."""

    frames: Frames
    listed: VideoPairs
    left_out: LeftOut


def _read(request: Request, options: NoOptions) -> _Listed:
    listed = read_ytf_splits(file_inside(request.files, "splits.txt"))
    people = [video.split("/")[0] for video in listed.videos]
    out = left_out(request.one_person, people, listed.pairs)
    kept = {name: getattr(listed, name)[out.kept] for name in ("pairs", "same", "fold")}
    frames = group_frames(required_names(request), listed.videos)
    return _Listed(frames, listed._replace(**kept), out)


def read_ytf_splits(path: str | os.PathLike[str]) -> VideoPairs:
    """Reads YTF's list of pairs; a first line that begins with "split" is a header.

    Raises:
      UserError: no such file; a malformed line, by number, or one whose answer contradicts the
        people's names; fewer than two folds.
    """
    listed = [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(text_lines(Path(path), what="YTF pair list"), 1)
        if number > 1 or not line.lower().startswith("split")
    ]
    if len({fold for fold, *_ in listed}) < 2:
        raise UserError(f"{path} has {len(listed)} pairs in fewer than 2 folds: expected 10 folds")
    videos = sorted({video for _, *pair, _ in listed for video in pair})
    place = {video: i for i, video in enumerate(videos)}
    _, people = np.unique([video.split("/")[0] for video in videos], return_inverse=True)
    return VideoPairs(
        tuple(videos),
        people.astype(np.int32),
        np.array([[place[video] for video in pair] for _, *pair, _ in listed], np.int32),
        np.array([same for *_, same in listed], bool),
        np.array([fold - 1 for fold, *_ in listed], np.int32),
    )


def group_frames(names: Sequence[str], videos: Sequence[str]) -> Frames:
    """The frames of the videos.

    Args:
      names: N names, PERSON/VIDEO/FRAME; frames of other videos are ignored.
      videos: V distinct names, PERSON/VIDEO.
    """
    place = {video: i for i, video in enumerate(videos)}
    frames_of: list[list[tuple]] = [[] for _ in videos]
    for row, name in enumerate(names):
        parts = canonical(name).rsplit("/", 3)[-3:]
        if len(parts) < 3:
            raise UserError(f"row {row} is named {name!r}: expected PERSON/VIDEO/FRAME")
        video = place.get(f"{parts[0]}/{parts[1]}")
        if video is not None:
            frames_of[video].append((_natural(parts[2]), row))
    missing = [video for video, frames in zip(videos, frames_of, strict=True) if not frames]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(videos):,} videos have no frame among the embeddings, the "
            f"first is {missing[0]!r}: embed their frames under names PERSON/VIDEO/FRAME"
        )
    rows = [row for frames in frames_of for _, row in sorted(frames)]
    starts = np.cumsum([0] + [len(frames) for frames in frames_of])
    return Frames(np.array(rows, np.int64), starts.astype(np.int64))


def _parse(line: str, where: str) -> tuple[int, str, str, bool]:
    """(fold, first video, second video, same)."""
    raw = line.encode()
    fields = [field.strip() for field in split_fields(raw, delimiter_of(raw))]
    if len(fields) != 5:
        raise UserError(
            f"{where}: found {len(fields)} fields, expected "
            "'fold, index, PERSON/VIDEO, PERSON/VIDEO, same'"
        )
    fold, index, first, second, same = fields
    for what, value in (("fold", fold), ("index", index)):
        if not (value.isdecimal() and len(value) < 8 and int(value)):
            raise UserError(f"{where}: {what} is {value!r}, expected a whole number from 1")
    for video in (first, second):
        if len(video.split("/")) != 2 or not all(video.split("/")):
            raise UserError(f"{where}: video is {video!r}, expected PERSON/VIDEO")
    if same not in ("0", "1"):
        raise UserError(f"{where}: same is {same!r}, expected 1 or 0")
    if (first.split("/")[0] == second.split("/")[0]) != (same == "1"):
        raise UserError(
            f"{where}: same is {same} for {first} and {second}: expected 1 for two videos of one "
            "person, and 0 otherwise"
        )
    return int(fold), first, second, same == "1"


def _natural(name: str) -> tuple:
    """Sorts numbers within names as numbers."""
    parts = _DIGITS.split(name)
    # As length and text: the digits may be too many for an int.
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return tuple(parts)


def _evaluate(
    request: Request,
    options: NoOptions,
    data: _Listed,
    scorers: Mapping[str, Rescorer],
) -> dict[str, Evaluation]:
    evaluated = evaluate_ytf(
        request.embeddings.embeddings,
        data.frames,
        data.listed,
        scorers,
        skip_bad=request.skip_bad,
        **request.bootstrap,
    )
    return {mode: data.left_out.noted(of) for mode, of in evaluated.items()}


register(
    Protocol(
        "ytf",
        files="splits.txt",
        rows="frames, named PERSON/VIDEO/FRAME",
        identities="people, PERSON of PERSON/VIDEO",
        people=people_by_folder,
        read=_read,
        evaluate=_evaluate,
    )
)
