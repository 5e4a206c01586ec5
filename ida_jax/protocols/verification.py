"""Verification of pairs by every method: figures, their intervals, and curves with bands.

N faces, P pairs, D embedding, G genuine and n impostor pairs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.bootstrap import deep_enough
from ida_jax.metrics.decisions import Changed, changed_decisions
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.metrics.score_figures import (
    FEWEST_FALSE_ACCEPTS,
)
from ida_jax.metrics.tails import (
    Tail,
    all_pairs_total,
    genuine_rows,
    impostor_rows,
    split_tail,
)
from ida_jax.protocols.scored_pairs import (
    BASELINE,
    PROGRESS,
    all_fars,
    figures_and_curves,
    kfold_figures,
)
from ida_jax.rescoring.pairs import all_pair_scores, pair_scores
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import checked_labels

_COMPARED = "ida_r"


class AllPairs(NamedTuple):
    """Verification over all pairs of faces.

    Attributes:
      evaluated: figures, curves and notes.
      scores: {method: its scores, ascending}.
      changed: the pairs, int64 [≤ 24, 2] rows of faces, that IDA-R decides otherwise than the
        cosine, both at `changed_far`; None where one of the methods or such a FAR is missing.
      changed_far: the lowest FAR with at least 10 false accepts by both.
    """

    evaluated: Evaluated
    scores: dict[str, SplitScores]
    changed: Changed | None
    changed_far: float | None


def evaluate_kfold(
    faces: np.ndarray,
    pair_list: PairList,
    methods: Mapping[str, FaceTerms],
    *,
    labels: ArrayLike,
    bad: np.ndarray | None = None,
    scored: Mapping[str, np.ndarray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluated:
    """A k-fold verification protocol (LFW, CALFW): accuracy ± deviation, and the list's ROC curve.

    Intervals are over the identities of the list. The accuracy's take the folds' thresholds as they
    are: Σ w_p [p decided right] / Σ w_p over resampled pairs.

    Args:
      faces: float32 [N, D], unit rows.
      pair_list: the pairs, their answers and folds.
      methods: the faces' terms by each, under its name in the results.
      labels: int [N], the faces' identities.
      bad: bool [N], faces whose pairs get NaN, which never matches; none where None.
      scored: scores of the pairs by further methods, [P] each.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: labels of another number, or no pairs of a kind.
    """
    labels = checked_labels(labels, len(faces))
    same = np.asarray(pair_list.same, bool)
    scores = pair_scores(faces, pair_list.pairs, methods) | (scored or {})
    if bad is not None:
        for each in scores.values():
            each[bad[pair_list.pairs].any(axis=1)] = np.nan
    _, units = np.unique(labels[pair_list.pairs], return_inverse=True)
    return kfold_figures(
        scores,
        same,
        pair_list.fold,
        units.reshape(-1, 2),
        over="identities",
        resamples=resamples,
        seed=seed,
    )


def evaluate_all_pairs(
    faces: np.ndarray,
    labels: ArrayLike,
    methods: Mapping[str, FaceTerms],
    *,
    fars: Sequence[float],
    scored: Mapping[str, SplitScores] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> AllPairs:
    """Verification over all N(N−1)/2 pairs of faces, intervals over their identities.

    Memory: 4 bytes a pair and method, and about 40 bytes a pair besides.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N], the faces' identities.
      methods: the faces' terms by each, under its name in the results.
      fars: the FARs of the figures.
      scored: scores by further methods, in `score_all_pairs`' order; they are sorted in place.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: labels of another number, more pairs than are kept in memory, no pairs of a
        kind, or a FAR outside (0, 1].
    """
    labels = checked_labels(labels, len(faces))
    identities, units = np.unique(labels, return_inverse=True)
    scores = all_pair_scores(faces, labels, methods) | (scored or {})
    genuine, impostors = (kind.size for kind in next(iter(scores.values())))
    of_genuine = units[genuine_rows(units, np.arange(genuine)).first][:, None]

    def impostor_units(positions: np.ndarray) -> np.ndarray:
        return units[np.stack(impostor_rows(units, positions), axis=1)]

    def tails(highest_far: float) -> dict[str, Tail]:
        # A genuine pair lies within one identity: two equal sides.
        return {
            name: split_tail(
                *split,
                genuine_units=np.repeat(of_genuine, 2, axis=1),
                impostor_units=impostor_units,
                highest_far=highest_far,
            )
            for name, split in scores.items()
        }

    bootstrap = deep_enough(
        tails,
        fars=all_fars(fars, impostors),
        units=identities.size,
        total=all_pairs_total(units),
        baseline=BASELINE,
        resamples=resamples,
        seed=seed,
        progress=PROGRESS,
    )
    changed_far, changed = _changed(scores, units, fars)
    for split in scores.values():
        for kind in split:
            kind.sort()
    return AllPairs(figures_and_curves(scores, bootstrap, fars), scores, changed, changed_far)


def _changed(
    scores: Mapping[str, SplitScores], labels: np.ndarray, fars: Sequence[float]
) -> tuple[float | None, Changed | None]:
    """The FAR and the pairs of `AllPairs`, from scores in `score_all_pairs`' order."""
    if BASELINE not in scores or _COMPARED not in scores:
        return None, None
    base, other = scores[BASELINE], scores[_COMPARED]
    wanted = sorted(set(fars))
    points = zip(tar_at_far(*base, wanted), tar_at_far(*other, wanted), strict=True)
    firm = [pair for pair in points if min(p.false_accepts for p in pair) >= FEWEST_FALSE_ACCEPTS]
    if not firm:
        return None, None
    at_base, at_other = firm[0]
    genuine, impostors = base.genuine.size, base.impostor.size
    found = changed_decisions(
        np.concatenate(base),
        np.concatenate(other),
        np.repeat([True, False], [genuine, impostors]),
        base_threshold=at_base.threshold,
        other_threshold=at_other.threshold,
    )
    rows = {}
    for kind in found._fields[:4]:
        places = getattr(found, kind)
        if kind.endswith("genuine"):
            rows[kind] = np.stack(genuine_rows(labels, places), axis=1)
        else:
            rows[kind] = np.stack(impostor_rows(labels, places - genuine), axis=1)
    return at_base.far, found._replace(**rows)
