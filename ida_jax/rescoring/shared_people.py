"""People who are both among the faces and among the anchors.

An anchor of a face's own identity is not an inter-class neighbour: it lowers the scores of that
person. Thresholds and calibrations that are made from such scores are too lax for everybody else:
on LFW 7 times the FAR that was asked for (experiments/results/calibration_leak.json). So `rescore`
leaves a face's own identity out where it knows who is on it, and looks for what is left by what it
searches anyway: each face's cosine to its nearest anchor.

N faces, A anchors.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import HIGHEST_THRESHOLD, same_person_threshold
from ida_jax.common.errors import UserError
from ida_jax.tables.embeddings import names_beside
from ida_jax.tables.identities import people_of_images, read_people_or_images
from ida_jax.tables.score_origin import MOST_SHARED, Shared
from ida_jax.tables.text import canonical, text_lines

# The threshold is that which one of as many strangers reaches, so that few faces have none.
_FEWEST_FACES = 1000
_ADVICE = (
    "give --labels=L to leave a face's own identity out, or make an anchor set of other people"
)


def own_labels(path: Path, anchors: AnchorSet, rows: int) -> np.ndarray | None:
    """Who is on each face in the anchors' numbering, int32 [N]; None where no one is among them.

    Args:
      path: N integers in the anchors' numbering, or names: of people, or of images, PERSON/IMAGE.
      rows: N.

    Raises:
      UserError: as `read_people`; names (integers), and the anchors have none.
    """
    people = read_people_or_images(path, rows, among=anchors.names)
    if anchors.labels is None:
        raise UserError(
            f"{path} says who is on each face, but the anchors have no labels: build the anchor "
            "set with --labels"
        )
    return anchors.labels_of(people)


def known_people(embeddings: Path, names: Sequence[str] | None, anchors: AnchorSet) -> np.ndarray:
    """Which faces' people are among the anchors by the faces' own names, bool [N]; [0] if unknown.

    Args:
      embeddings: their file; the names that `ida_jax.embed` writes beside an .npy count too.
      names: those in the file, PERSON/IMAGE.
    """
    beside = names_beside(embeddings, None)
    if names is None and beside is not None:
        with contextlib.suppress(UserError):  # a damaged file that was not asked for
            names = text_lines(beside, what="names")
    people = people_of_images(names or [""])
    if people is None or not anchors.names:
        return np.zeros(0, bool)
    return people_among(people, anchors)


def people_among(people: Sequence[str], anchors: AnchorSet) -> np.ndarray:
    """Which people are among the anchors by name, bool [N]; of images, PERSON/IMAGE, theirs too."""
    there = set(map(canonical, anchors.names or ()))
    persons = people_of_images(people) or people
    pairs = zip(people, persons, strict=True)
    return np.array([not there.isdisjoint(map(canonical, both)) for both in pairs], bool)


def shared_people(
    nearest: np.ndarray, anchors: AnchorSet, *, labels: np.ndarray | None, known: np.ndarray
) -> Shared:
    """How many faces' people are among the anchors, by label, name and cosine.

    Args:
      nearest: float32 [N], each face's cosine to its nearest anchor, its own identity left out;
        NaN where the face is bad.
      labels: int [N], the identities that were left out, −1 for none; None for none at all.
      known: bool [N], see `known_people`; ignored if its length differs.
    """
    good = ~np.isnan(nearest)
    faces = int(np.count_nonzero(good))
    try:
        threshold = same_person_threshold(anchors, faces=max(faces, _FEWEST_FACES))
    except UserError:  # too few anchors for one
        threshold = HIGHEST_THRESHOLD
    left_out = np.zeros(len(nearest), bool) if labels is None else labels >= 0
    known = known if len(known) == len(nearest) else np.zeros(len(nearest), bool)
    return Shared(
        faces,
        left_out=int(np.count_nonzero(left_out & good)),
        known=int(np.count_nonzero(known & ~left_out & good)),
        likely=int(np.count_nonzero(nearest[good] >= np.float32(threshold))),
        threshold=float(threshold),
    )


def shared_warning(shared: Shared, anchors: AnchorSet, *, advice: str = _ADVICE) -> str:
    """What a reader of the scores must know, in one line; "" for nothing.

    Args:
      advice: what can be done about it.
    """
    if shared.share > MOST_SHARED:
        return f"{shared.described()}, which lowers their scores: {advice}"
    if shared.threshold >= HIGHEST_THRESHOLD and anchors.labels is None:
        return (
            "whether the faces' people are among the anchors is unknown, since the set seems "
            "to hold several images of a person without labels: build it with --labels"
        )
    return ""
