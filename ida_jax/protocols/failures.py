"""The pairs that methods decide wrongly, or otherwise than the cosine: rows of faces to look at.

N faces, P pairs, G genuine and n impostor pairs, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.metrics.decisions import (
    Failure,
    Failures,
    Kind,
    Threshold,
    changed_decisions,
    worst_places,
)
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, far_key
from ida_jax.metrics.groups import REST, FaceGroups
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.resampling import genuine_rows
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.rescoring.method_table import BASELINE, is_dao
from ida_jax.rescoring.terms import FaceTerms

# Positions of genuine, or of impostor, pairs to rows of faces, int64 [m, 2].
RowsOf = Callable[[np.ndarray], np.ndarray]
MOST = 40  # pairs of a kind and method


class Listed(NamedTuple):
    """A method's pairs of one kind.

    Attributes:
      pairs: int64 [≤ 40, 2], rows of faces; the worst, or the clearest, first.
      scores: [≤ 40], the method's.
      total: how many such pairs there are; of the worst, those listed.
    """

    pairs: np.ndarray
    scores: np.ndarray
    total: int


ByMethod = Mapping[str, Mapping[Kind, Listed]]


def firm_thresholds(
    scores: Mapping[str, SplitScores], fars: Sequence[float]
) -> tuple[float | None, dict[str, float]]:
    """The lowest FAR at which the cosine has ten false accepts, and the methods' thresholds there.

    Without those of methods that have fewer at it, whose scores are tied; (None, {}) where there is
    no such FAR, or no cosine.
    """
    if BASELINE not in scores:
        return None, {}
    points = tar_at_far(*scores[BASELINE], sorted(set(fars)))
    firm = [point.far for point in points if point.false_accepts >= FEWEST_FALSE_ACCEPTS]
    if not firm:
        return None, {}
    at = {name: tar_at_far(*split, firm[:1])[0] for name, split in scores.items()}
    kept = {n: p.threshold for n, p in at.items() if p.false_accepts >= FEWEST_FALSE_ACCEPTS}
    return firm[0], kept


def listed_pairs(
    scores: Mapping[str, SplitScores],
    thresholds: Mapping[str, Threshold],
    genuine: RowsOf,
    impostor: RowsOf,
) -> dict[str, dict[Kind, Listed]]:
    """{method: its pairs to look at, by kind}: the worst, and those it corrects and breaks.

    Args:
      scores: of the same pairs, in one order.
      thresholds: those of methods to be compared with the cosine, its own among them.
    """
    base = scores.get(BASELINE)
    listed: dict[str, dict[Kind, Listed]] = {}
    for name, split in scores.items():
        worst = worst_places(split, most=MOST)
        found = {
            ("worst", kind): (at, at.size) for kind, at in zip((True, False), worst, strict=True)
        }
        if name != BASELINE and {name, BASELINE} <= thresholds.keys():
            found |= changed_decisions(
                base,
                split,
                base_threshold=thresholds[BASELINE],
                other_threshold=thresholds[name],
                most=MOST,
            )
        listed[name] = {
            kind: Listed(
                (genuine if kind[1] else impostor)(places),
                (split.genuine if kind[1] else split.impostor)[places],
                total,
            )
            for kind, (places, total) in found.items()
        }
    return listed


def failures_of_list(
    scores: Mapping[str, np.ndarray],
    same: np.ndarray,
    pairs: np.ndarray,
    thresholds: Mapping[str, float | np.ndarray],
) -> dict[str, dict[Kind, Listed]]:
    """`listed_pairs` of scored pairs in one list.

    Args:
      scores: {method: [P]}.
      same: bool [P].
      pairs: int [P, 2], rows of faces.
      thresholds: one, or one per pair.
    """

    def by_kind(threshold: float | np.ndarray) -> Threshold:
        return (threshold[same], threshold[~same]) if np.ndim(threshold) else threshold

    of_kind = pairs[same], pairs[~same]
    return listed_pairs(
        {name: SplitScores(of[same], of[~same]) for name, of in scores.items()},
        {name: by_kind(threshold) for name, threshold in thresholds.items()},
        of_kind[0].__getitem__,
        of_kind[1].__getitem__,
    )


def kfold_thresholds(
    scores: Mapping[str, np.ndarray], same: np.ndarray, fold: np.ndarray
) -> dict[str, np.ndarray]:
    """{method: the threshold of each pair's fold, [P]}, that of `kfold_accuracy`."""
    _, place = np.unique(fold, return_inverse=True)
    return {
        name: kfold_accuracy(of, same, folds=fold).thresholds[place] for name, of in scores.items()
    }


def genuine_faces(units: np.ndarray) -> RowsOf:
    """The rows of genuine pairs among all pairs of N faces, whose units these are."""
    return lambda positions: np.stack(genuine_rows(units, positions), axis=1)


def log_densities(methods: Mapping[str, FaceTerms]) -> dict[str, np.ndarray]:
    """{method: log F of the faces, [N]} of the methods that have one."""
    return {name: np.asarray(of.values)[:, 0] for name, of in methods.items() if is_dao(name)}


def described(
    listed: ByMethod,
    faces: np.ndarray,
    names: Sequence[str],
    *,
    decided: str = "",
    densities: Mapping[str, np.ndarray],
    bad: np.ndarray | None = None,
    groups: FaceGroups | None = None,
    probability: Callable[[str, np.ndarray], ArrayLike | None] = lambda method, scores: None,
) -> Failures:
    """The pairs with what is known of them, by method and kind, the highest score first.

    Args:
      listed: as `listed_pairs`.
      faces: float32 [N, D], unit rows.
      names: N names.
      decided: at what both methods decide, in words.
      densities: {method: log F of the faces, [N]}.
      bad: bool [N], faces without an embedding; none if None.
      groups: the N faces'.
      probability: (method, its scores) to probabilities, None without a calibration.
    """
    found = []
    for method, kinds in listed.items():
        for (kind, genuine), (pairs, scores, _) in kinds.items():
            cosines = np.einsum("pd,pd->p", *(faces[side] for side in pairs.T))
            if bad is not None:
                cosines[bad[pairs].any(axis=1)] = np.nan
            log_f = densities[method][pairs].tolist() if method in densities else None
            chance = probability(method, scores)
            codes = None if groups is None else groups.of_pairs(*pairs.T).tolist()
            # NaN last: the lowest.
            for place in np.argsort(-scores, kind="stable").tolist():
                group = "" if codes is None else REST
                if codes is not None and codes[place] >= 0:
                    group = groups.cells.names[codes[place]]
                found.append(
                    Failure(
                        method,
                        kind,
                        genuine,
                        (names[pairs[place, 0]], names[pairs[place, 1]]),
                        float(cosines[place]),
                        None if log_f is None else tuple(log_f[place]),
                        float(scores[place]),
                        None if chance is None else float(chance[place]),
                        group,
                    )
                )
    return Failures(tuple(found), decided)


def decided_at(far: float | None) -> str:
    """What corrected and broken mean, both methods at their thresholds of a FAR."""
    if far is None:
        return ""
    return f"A method corrects or breaks what the cosine decides, both at FAR {far_key(far)}."


BY_FOLD = (
    "A method corrects or breaks what the cosine decides, both at the thresholds that are best on "
    "the other folds."
)
