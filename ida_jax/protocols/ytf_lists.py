"""YouTube Faces: the list of video pairs, and frames grouped by video.

    splits.txt    fold, index, PERSON/VIDEO, PERSON/VIDEO, same (1 or 0)
    frames        named PERSON/VIDEO/FRAME, in whatever folders above

P pairs, V videos, N frames.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.tables.text import canonical, delimiter_of, split_fields, text_blocks

PAIRS = 5000
_DIGITS = re.compile("([0-9]+)")


class VideoPairs(NamedTuple):
    """YTF's list.

    Attributes:
      videos: the V videos that pairs name, sorted.
      people: int32 [V], whose video it is, from 0.
      pairs: int32 [P, 2], places in `videos`.
      same: bool [P], True for one person's pair.
      fold: int32 [P], from 0.
    """

    videos: tuple[str, ...]
    people: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class Frames(NamedTuple):
    """Which frames a video has.

    Attributes:
      rows: int64, rows of the N frames, video by video, in the natural order of the frames' names
        (1.2.jpg before 1.10.jpg).
      starts: int64 [V + 1], where each video's begin, and where the last one's end.
    """

    rows: np.ndarray
    starts: np.ndarray

    def of(self, video: int) -> np.ndarray:
        """The rows of a video's frames."""
        return self.rows[self.starts[video] : self.starts[video + 1]]


def read_ytf_splits(path: str | os.PathLike[str]) -> VideoPairs:
    """Reads YTF's list of pairs; a first line that begins with "split" is a header.

    Raises:
      UserError: no such file; a line of another form, or whose answer contradicts the people's
        names; fewer than two folds. The message names the line.
    """
    path = Path(path)
    require_file(path, what="YTF pair list")
    found = []
    for block in text_blocks(path):
        for number, line in block.lines():
            if number > 1 or not line.lower().startswith(b"split"):
                found.append(_parse(line, f"{path}, line {number}"))
    if len({fold for fold, *_ in found}) < 2:
        raise UserError(f"{path} has {len(found)} pairs in fewer than 2 folds: expected 10 folds")
    videos = sorted({video for _, first, second, _ in found for video in (first, second)})
    place = {video: i for i, video in enumerate(videos)}
    _, people = np.unique([video.split("/")[0] for video in videos], return_inverse=True)
    return VideoPairs(
        tuple(videos),
        people.astype(np.int32),
        np.array([[place[first], place[second]] for _, first, second, _ in found], np.int32),
        np.array([same for *_, same in found], bool),
        np.array([fold - 1 for fold, *_ in found], np.int32),
    )


def group_frames(names: Sequence[str], videos: Sequence[str]) -> Frames:
    """The frames of each video.

    Args:
      names: N names, PERSON/VIDEO/FRAME; frames of other videos are passed over.
      videos: V distinct names, PERSON/VIDEO.

    Raises:
      UserError: a name of another form; videos without a frame, the first named and all counted.
    """
    place = {video: i for i, video in enumerate(videos)}
    found: list[list[tuple]] = [[] for _ in videos]
    for row, name in enumerate(names):
        parts = canonical(name).rsplit("/", 3)[-3:]
        if len(parts) < 3:
            raise UserError(f"row {row} is named {name!r}: expected PERSON/VIDEO/FRAME")
        video = place.get(f"{parts[0]}/{parts[1]}")
        if video is not None:
            found[video].append((_natural(parts[2]), row))
    missing = [video for video, frames in zip(videos, found, strict=True) if not frames]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(videos):,} videos have no frame among the embeddings, the "
            f"first is {missing[0]!r}: embed their frames under names PERSON/VIDEO/FRAME"
        )
    rows = [row for frames in found for _, row in sorted(frames)]
    starts = np.cumsum([0] + [len(frames) for frames in found])
    return Frames(np.array(rows, np.int64), starts.astype(np.int64))


def _parse(line: bytes, where: str) -> tuple[int, str, str, bool]:
    """(fold, first video, second video, same)."""
    fields = [field.strip() for field in split_fields(line, delimiter_of(line))]
    if len(fields) != 5:
        raise UserError(
            f"{where}: {len(fields)} fields were found, expected "
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
            "person, and 0 else"
        )
    return int(fold), first, second, same == "1"


def _natural(name: str) -> tuple:
    """Sorts numbers within names as numbers."""
    parts = _DIGITS.split(name)
    # As text of a length, since a number of any length may come.
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return tuple(parts)
