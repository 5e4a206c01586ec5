"""How a trial shares out people: every person is tested once, by things that never saw them.

Identities are dealt into five folds. In rotation r fold r is tested; fold r + 1 chooses the method,
fold r + 2 fits what methods need, and the images of folds r + 3 and r + 4 are the anchors (of given
anchors none are taken, and these folds fit too).

N faces.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.rescoring.development import first_rows

FOLDS = 5
FEWEST_IDENTITIES = 20
# People of whom a fold must have genuine pairs.
FEWEST_GENUINE = 2
# A few people with many images must not outweigh the rest.
IMAGES = 10
# Faces of a fold that are compared: memory and time grow with the square.
MOST_COMPARED = 2200
_MOST_FITTED = 4000


class Rotation(NamedTuple):
    """Rows of the embeddings by their part in one rotation, int [·] each, ascending."""

    test: np.ndarray
    choose: np.ndarray
    fit: np.ndarray
    anchors: np.ndarray


def rotations(people: np.ndarray, *, own_anchors: bool, seed: int) -> tuple[Rotation, ...]:
    """The five rotations of identities.

    Args:
      people: int [N], identities from 0; negative where unknown: those faces are left out.
      own_anchors: whether anchors are taken from the faces.
    """
    known = np.flatnonzero(people >= 0)
    identities, codes, counts = np.unique(people[known], return_inverse=True, return_counts=True)
    several = int(np.count_nonzero(counts > 1))
    if identities.size < FEWEST_IDENTITIES:
        raise UserError(
            f"{identities.size} identities: expected {FEWEST_IDENTITIES} or more, and some "
            "hundreds for a gain of usual size to show"
        )
    if several < FOLDS * FEWEST_GENUINE:
        raise UserError(
            f"{several} of {identities.size} identities have two images or more: expected at least "
            f"{FOLDS * FEWEST_GENUINE}, since without genuine pairs nothing can be said of TAR; "
            "impostor scores alone: ida-jax rescore"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(identities.size)
    order = order[np.argsort(counts[order] < 2, kind="stable")]  # those with genuine pairs first
    place = np.empty(identities.size, np.int64)
    place[order] = np.arange(identities.size)
    fold_of = (place % FOLDS)[codes]
    folds = [known[fold_of == fold] for fold in range(FOLDS)]
    limited = [_limited(rows, people, place[codes[fold_of == f]]) for f, rows in enumerate(folds)]
    made = []
    for test in range(FOLDS):
        choose, *rest = ((test + step) % FOLDS for step in range(1, FOLDS))
        fit = rest[:1] if own_anchors else rest
        anchors = rest[1:] if own_anchors else []
        fitted = np.sort(np.concatenate([_images(folds[f], people) for f in fit]))
        rows = [folds[f] for f in anchors] or [np.empty(0, np.int64)]
        made.append(
            Rotation(
                limited[test],
                limited[choose],
                _most(fitted, people, _MOST_FITTED, rng),
                np.sort(np.concatenate(rows)),
            )
        )
    return tuple(made)


def _images(rows: np.ndarray, people: np.ndarray) -> np.ndarray:
    """At most `IMAGES` faces of each identity, the first ones."""
    return rows[first_rows(people[rows], IMAGES)]


def _limited(rows: np.ndarray, people: np.ndarray, place: np.ndarray) -> np.ndarray:
    """At most `MOST_COMPARED` of them, by identity: those with genuine pairs first."""
    kept = np.isin(rows, _images(rows, people))
    rows, place = rows[kept], place[kept]
    order = np.argsort(place, kind="stable")
    return np.sort(rows[order[:MOST_COMPARED]])


def _most(rows: np.ndarray, people: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """All rows, or those of randomly drawn identities, about `most`."""
    if len(rows) <= most:
        return rows
    identities, codes = np.unique(people[rows], return_inverse=True)
    place = rng.permutation(identities.size)[codes]
    return np.sort(rows[np.argsort(place, kind="stable")[:most]])
