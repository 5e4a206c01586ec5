"""Identities that may show one person: labels to look at before figures at low FARs are believed.

Of all pairs of faces under two identities, the few most similar ones are mostly one person under
two names, or an image under the wrong name. They are gathered by their identities here, to be
judged by eye; nothing is decided.

N faces, D embedding, P pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import Matches, near_duplicates
from ida_jax.common.errors import UserError

_ROWS = 512
# The most cosines that a threshold is taken from; of more, those of evenly spaced rows.
_MOST_COSINES = 400_000_000
_MOST_PAIRS = 1_000_000


class Candidate(NamedTuple):
    """Two identities of which some images are near-duplicates.

    Attributes:
      identities: both labels, the lower first.
      rows: their most similar images.
      cosines: of those, by each model.
      pairs: how many of their pairs of images are near-duplicates.
      between: the mean cosine of all their pairs of images, by the first model.
      odd: an image of either that is nearer to the other identity than to its own other images, as
        one under the wrong name is; −1 where neither of `rows` is.
    """

    identities: tuple[int, int]
    rows: tuple[int, int]
    cosines: tuple[float, ...]
    pairs: int
    between: float
    odd: int


def impostor_threshold(faces: np.ndarray, labels: np.ndarray, *, far: float) -> float:
    """The cosine that the share `far` of the pairs of two identities reaches.

    Of all pairs where there are at most 4·10⁸, otherwise of those of evenly spaced rows with all.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N]; negative ones are unknown and left out.
      far: in (0, 1].

    Raises:
      UserError: no pair of two identities.
    """
    known = labels >= 0
    faces, labels = faces[known], labels[known]
    n = len(faces)
    step = max(1, -(-n * n // _MOST_COSINES))
    rows = np.arange(0, n, step)
    impostors = sum(int(np.count_nonzero(labels != labels[row])) for row in rows)
    if not impostors:
        raise UserError(f"{n} faces are of one identity: expected at least two")
    # Each pair is met from both sides where all rows are taken, so that ranks double.
    depth = max(1, int(far * impostors))
    highest = np.empty(0, np.float32)
    for start in range(0, rows.size, _ROWS):
        some = rows[start : start + _ROWS]
        cosines = faces[some] @ faces.T
        apart = labels[some][:, None] != labels[None, :]
        if highest.size == depth:
            apart &= cosines > highest.min()
        highest = np.concatenate([highest, cosines[apart]])
        if highest.size > depth:
            highest = np.partition(highest, highest.size - depth)[-depth:]
    return float(highest.min())


def one_person_candidates(
    models: Sequence[np.ndarray], labels: np.ndarray, thresholds: Sequence[float]
) -> list[Candidate]:
    """The pairs of identities with near-duplicates by every model, the most similar first.

    With two models a pair of images is ranked by the model to which it is less conspicuous: its
    lower rank among the pairs.

    Args:
      models: float32 [N, D] each, unit rows of the same faces.
      labels: int [N], the faces' identities, from 0; negative ones are unknown and left out.
      thresholds: for each model, the cosine from which two images are near-duplicates.
    """
    known = np.flatnonzero(labels >= 0)
    models, labels = [faces[known] for faces in models], labels[known].astype(np.int32)
    found = near_duplicates(AnchorSet(models[0], labels), thresholds[0], limit=_MOST_PAIRS)
    cosines = np.stack([_cosines(faces, found) for faces in models])
    near = (cosines[1:] >= np.reshape(thresholds[1:], (-1, 1))).all(axis=0)
    pairs, cosines = np.stack([found.first, found.second])[:, near], cosines[:, near]
    ranks = np.argsort(np.argsort(-cosines, axis=1, kind="stable"), axis=1)
    best: dict[tuple[int, int], int] = {}
    count: dict[tuple[int, int], int] = {}
    for place in np.argsort(ranks.max(axis=0), kind="stable").tolist():
        first, second = labels[pairs[:, place]].tolist()
        key = (min(first, second), max(first, second))
        best.setdefault(key, place)
        count[key] = count.get(key, 0) + 1
    rows_of = _rows_by_label(labels)
    candidates = []
    for key, place in best.items():
        rows = sorted(pairs[:, place].tolist(), key=lambda row: labels[row])
        sides = [rows_of[label] for label in key]
        faces = models[0].astype(np.float64)
        candidates.append(
            Candidate(
                key,
                tuple(known[rows].tolist()),
                tuple(cosines[:, place].tolist()),
                count[key],
                float(np.mean(faces[sides[0]] @ faces[sides[1]].T)),
                next((int(known[row]) for row in _odd(faces, rows, sides)), -1),
            )
        )
    return candidates


def _odd(faces: np.ndarray, rows: Sequence[int], sides: Sequence[np.ndarray]) -> list[int]:
    """Those of two images that are nearer to the other identity than to their own other images."""
    odd = []
    for row, own, other in zip(rows, sides, sides[::-1], strict=True):
        mates = own[own != row]
        if mates.size and faces[other].mean(0) @ faces[row] > faces[mates].mean(0) @ faces[row]:
            odd.append(row)
    return odd


def _rows_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))


def _cosines(faces: np.ndarray, pairs: Matches) -> np.ndarray:
    return np.einsum("pd,pd->p", faces[pairs.first], faces[pairs.second])
