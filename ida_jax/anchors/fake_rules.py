"""Which of a generator's faces may be anchors: the rules, and the selection by them.

Each rule is set by the training faces' own similarities: a face must be as near to people as real
people are (`coverage`'s rule), no nearer to a training face than a stranger would be by chance
(privacy), and no near-duplicate of another anchor (`check.same_person_threshold`). Faces are taken
in the order of their numbers, so that the same command gives the same set.

N candidates in their order, A anchors, T training faces, P people, D embedding.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import HIGHEST_THRESHOLD, same_person_threshold
from ida_jax.anchors.coverage import own_neighbourhood, own_neighbours
from ida_jax.anchors.search import SupportSearch
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_same_model

if TYPE_CHECKING:
    from tqdm import tqdm


# A candidate's verdict: the first of these that holds.
UNREADABLE, IMPLAUSIBLE, NEAR_TRAINING, DUPLICATE, KEPT = range(5)
REASONS = {
    UNREADABLE: "unreadable or without an embedding",
    IMPLAUSIBLE: "implausible",
    NEAR_TRAINING: "too near a training face",
    DUPLICATE: "near-duplicates",
}
# The quantile of real people below which a face is implausible, as in `coverage`.
_IMPLAUSIBLE = 0.01
_KEPT_BLOCK = 8192
_LEVELS = (0, 1, 10, 50, 90, 99, 100)


class TrainingFaces(NamedTuple):
    """The faces that the generator was trained on, embedded by the anchors' model.

    Attributes:
      embeddings: [T, D], rows of any norm, embedded as the anchors are (mirrored or not).
      labels: int [T], the identity of each, negative where unknown; None where all are unknown.
      name: what they are called in messages and in the report.
      learned_from: whether the generator learned from them; if not, distance from them says nothing
        about privacy.
    """

    embeddings: np.ndarray
    labels: np.ndarray | None
    name: str
    learned_from: bool = True


class Rules(NamedTuple):
    """Thresholds in cosine, and the searches that they apply to.

    Attributes:
      duplicate: at or above it a face duplicates an anchor; None where still unknown.
      plausible: the mean cosine to the k nearest people below which a face is implausible.
      privacy: at or above it a face is a training person's.
      people: searches the k nearest among one face of each training person.
      faces: searches the nearest of all training faces.
      strangers: float32 [S], the cosine to the nearest face of another person, of training faces.
    """

    duplicate: float | None = None
    plausible: float | None = None
    privacy: float | None = None
    people: SupportSearch | None = None
    faces: SupportSearch | None = None
    strangers: np.ndarray | None = None


class Chosen(NamedTuple):
    """The selection.

    Attributes:
      embeddings: float32 [≤ A, D], of the candidates kept.
      verdicts: int8 [N], of the candidates up to the last that was needed.
      nearest: float32 [N], the cosine to the nearest training face; NaN without training faces.
    """

    embeddings: np.ndarray
    verdicts: np.ndarray
    nearest: np.ndarray


def training_rules(
    training: TrainingFaces, *, width: int, count: int, k: int, tau: float, privacy: float | None
) -> Rules:
    """The rules by the training faces; see `ida_jax.anchors.fake.fake_anchors`.

    Args:
      width: D of the anchors' model.
      count: A.
      privacy: the threshold; `same_person_threshold` if None.
    """
    everyone = AnchorSet.from_embeddings(training.embeddings, labels=training.labels, k=k, tau=tau)
    require_same_model("training faces", "", everyone.width, fingerprint="", width=width)
    rows = np.arange(len(everyone))
    if everyone.labels is not None:
        rows = real_db_rows(everyone.labels, size=len(everyone))
    if len(rows) <= k:
        raise UserError(
            f"{training.name}: {len(rows)} people, expected more than k = {k}: lower k, or name "
            "the whole training set"
        )
    # A row of unknown identity counts as a person of its own, here and in `own_neighbours`.
    people = AnchorSet(everyone.embeddings[rows], k=k, tau=tau)
    if privacy is None:
        privacy = same_person_threshold(everyone, faces=count)
        if everyone.labels is None and privacy >= HIGHEST_THRESHOLD:
            raise UserError(
                f"{training.name} seem to show people several times without labels, so that "
                "no threshold follows: give --training_labels, or --privacy_cosine"
            )
    plausible = np.quantile(own_neighbourhood(people, k=k, tau=tau).similarity, _IMPLAUSIBLE)
    among = max(1.0, count / len(rows))
    duplicate = same_person_threshold(people, faces=round(count * among))
    return Rules(
        float(duplicate),
        float(plausible),
        float(privacy),
        # Exact: an approximate search may miss the one training face that counts.
        SupportSearch(people, k=k, searcher="exact"),
        SupportSearch(everyone, k=1, searcher="exact"),
        own_neighbours(everyone, k=1).similarities[:, 0],
    )


def choose(
    chunks: Iterable[np.ndarray], rules: Rules, *, count: int, most: int, width: int, bar: "tqdm"
) -> Chosen:
    """Keeps the first `count` candidates that no rule drops, or as many as there are.

    Args:
      chunks: the candidates' unit embeddings [·, D] in their order; NaN if there is none.
      rules: with a threshold for duplicates; the others where they are known.
      count: A.
      width: D.
      bar: its total is set to the expected number of candidates.
    """
    kept, size = np.empty((count, width), np.float32), 0
    verdicts, nearest, seen = [np.empty(0, np.int8)], [np.empty(0, np.float32)], 0
    for faces in chunks:
        verdict, near = _judged(faces, rules)
        rows = np.flatnonzero(verdict == KEPT)
        new = _distinct(faces[rows], kept[:size], rules.duplicate)
        verdict[rows[~new]] = DUPLICATE
        rows = rows[new][: count - size]
        kept[size : size + len(rows)] = faces[rows]
        size += len(rows)
        last = int(rows[-1]) + 1 if size == count else len(faces)
        verdicts.append(verdict[:last])
        nearest.append(near[:last])
        seen += last
        bar.set_postfix(kept=size, refresh=False)
        if size == count:
            break
        if size:
            bar.total = min(most, round(seen * count / size))
    return Chosen(kept[:size], np.concatenate(verdicts), np.concatenate(nearest))


def privacy_record(chosen: Chosen, rules: Rules, training: TrainingFaces | None) -> dict[str, Any]:
    """The privacy check in the anchors' provenance: against whom, and how near the anchors come.

    Returns:
      privacy: "checked" or "not checked"; training: the faces' name, number, people and SHA-256, or
      None; nearest_training_cosine: quantiles of anchors, of all candidates, and of strangers.
    """
    if training is None:
        return {"privacy": "not checked", "training": None, "nearest_training_cosine": {}}
    everyone = rules.faces.anchors.embeddings
    return {
        "privacy": "checked" if training.learned_from else "not checked",
        "training": {
            "name": training.name,
            "faces": len(everyone),
            "people": len(rules.people.anchors),
            "sha256": hashlib.sha256(np.ascontiguousarray(everyone)).hexdigest(),
        },
        "nearest_training_cosine": {
            "kept": _quantiles(chosen.nearest[chosen.verdicts == KEPT]),
            "candidates": _quantiles(chosen.nearest),
            "strangers": _quantiles(rules.strangers),
        },
    }


def _judged(faces: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts [N] by all rules but the last, and the nearest training faces' cosines [N]."""
    verdict = np.full(len(faces), KEPT, np.int8)
    nearest = np.full(len(faces), np.nan, np.float32)
    bad = np.isnan(faces).any(axis=1)
    if rules.faces is not None:
        good = np.flatnonzero(~bad)
        usual = np.mean(rules.people(faces[good]).similarities, axis=1)
        nearest[good] = rules.faces(faces[good]).similarities[:, 0]
        verdict[nearest >= np.float32(rules.privacy)] = NEAR_TRAINING
        verdict[good[usual < np.float32(rules.plausible)]] = IMPLAUSIBLE
    verdict[bad] = UNREADABLE
    return verdict, nearest


def _distinct(faces: np.ndarray, kept: np.ndarray, threshold: float) -> np.ndarray:
    """bool [N]: faces below the threshold to all kept ones, and to all earlier true ones."""
    threshold = np.float32(threshold)
    new = np.ones(len(faces), bool)
    for start in range(0, len(kept), _KEPT_BLOCK):
        new &= (faces @ kept[start : start + _KEPT_BLOCK].T < threshold).all(axis=1)
    among = faces @ faces.T
    for row in range(len(faces)):
        if new[row]:
            new[row + 1 :] &= among[row, row + 1 :] < threshold
    return new


def _quantiles(cosines: np.ndarray) -> dict[str, float]:
    values = np.nanquantile(cosines.astype(np.float64), [level / 100 for level in _LEVELS])
    return {f"{level} %": round(float(q), 6) for level, q in zip(_LEVELS, values, strict=True)}
