"""Verification of pairs by every method: figures, their intervals, and curves with bands.

`evaluate_kfold` and `evaluate_all_pairs` score pairs of faces; the others take scores.

N faces, P pairs, D embedding, G genuine and n impostor pairs.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.bootstrap import (
    bootstrap_means,
    bootstrap_tar,
)
from ida_jax.metrics.decisions import KINDS, Changed, Kind
from ida_jax.metrics.evaluation import (
    Evaluation,
    split_scores,
)
from ida_jax.metrics.group_rates import Sides
from ida_jax.metrics.groups import FaceGroups, groups_of_all_pairs
from ida_jax.metrics.ignored import (
    ignored_positions,
    labels_as_units,
    total_without,
    whole_positions,
)
from ida_jax.metrics.interval_figures import mean_intervals, note_of_few_units
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.resampling import (
    all_pairs_total,
    genuine_rows,
    identity_codes,
    impostor_rows,
    pair_list_total,
)
from ida_jax.metrics.roc import SplitScores
from ida_jax.protocols.failures import (
    BY_FOLD,
    ByMethod,
    described,
    failures_of_list,
    firm_thresholds,
    genuine_faces,
    kfold_thresholds,
    listed_pairs,
    log_densities,
)
from ida_jax.protocols.scored_pairs import (
    PROGRESS,
    all_fars,
    evaluate_split_pairs,
    figures_and_curves,
)
from ida_jax.rescoring.method_table import BASELINE, HEADLINE
from ida_jax.rescoring.pairs import all_pair_scores, pair_scores
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import checked_labels

OVER_PAIRS = "the intervals take pairs for independent, and so are too narrow: no identities"


class AllPairs(NamedTuple):
    """Verification over all pairs of faces.

    Attributes:
      evaluated: figures, curves and notes.
      scores: {method: its scores, ascending}.
      changed: the pairs, int64 [≤ 40, 2] rows of faces, on which the headline method and the
        baseline decide differently at `changed_far`, by kind; None without either method or FAR.
      changed_far: the lowest FAR at which both have at least 10 false accepts.
      ignored: the number of impostor pairs that were left out.
      listed: {method: its pairs to look at, by kind}, rows of faces.
    """

    evaluated: Evaluation
    scores: dict[str, SplitScores]
    changed: dict[Kind, Changed] | None
    changed_far: float | None
    ignored: int = 0
    listed: ByMethod = MappingProxyType({})


def evaluate_kfold(
    faces: np.ndarray,
    pair_list: PairList,
    methods: Mapping[str, FaceTerms],
    *,
    labels: ArrayLike,
    bad: np.ndarray | None = None,
    scored: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] | None = None,
    groups: FaceGroups | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """A k-fold verification protocol (LFW, CALFW): accuracy ± deviation, and the list's ROC curve.

    Intervals are over the identities of the list.

    Args:
      faces: float32 [N, D], unit rows.
      methods: {name in the results: the faces' terms}.
      labels: int [N], the faces' identities.
      bad: bool [N], faces whose pairs score NaN, which never matches; none if None.
      scored: {further method: scores of the pairs, [P]}.
      names: the faces', for the pairs to look at; None lists none.
      groups: the faces', for these pairs.
      resamples, seed: of the bootstrap; 0 resamples omit the intervals.

    Raises:
      UserError: a different number of labels, or no pairs of a kind.
    """
    labels = checked_labels(labels, len(faces))
    same = np.asarray(pair_list.same, bool)
    scores = pair_scores(faces, pair_list.pairs, methods) | (scored or {})
    if bad is not None:
        for of_method in scores.values():
            of_method[bad[pair_list.pairs].any(axis=1)] = np.nan
    _, units = np.unique(labels[pair_list.pairs], return_inverse=True)
    evaluated = kfold_figures(
        scores,
        same,
        pair_list.fold,
        units.reshape(-1, 2),
        over="identities",
        resamples=resamples,
        seed=seed,
    )
    if names is None:
        return evaluated
    thresholds = kfold_thresholds(scores, same, pair_list.fold)
    listed = failures_of_list(scores, same, pair_list.pairs, thresholds)
    densities = log_densities(methods)
    failures = described(
        listed, faces, names, decided=BY_FOLD, densities=densities, bad=bad, groups=groups
    )
    return evaluated._replace(failures=failures)


def evaluate_all_pairs(
    faces: np.ndarray,
    labels: ArrayLike,
    methods: Mapping[str, FaceTerms],
    *,
    fars: Sequence[float],
    scored: Mapping[str, SplitScores] | None = None,
    ignored: ArrayLike | None = None,
    groups: FaceGroups | None = None,
    group_thresholds: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> AllPairs:
    """Verification over all N(N−1)/2 pairs of faces, intervals over their identities.

    Memory: 4 bytes per pair and method, and about 40 bytes per pair besides.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N], the faces' identities.
      methods: {name in the results: the faces' terms}.
      scored: {further method: scores in `score_all_pairs`' order}; sorted in place.
      ignored: int [M, 2], pairs of labels that show one person: the pairs of faces between them are
        left out, and all else is as it was, the bootstrap's identities too.
      groups: the N faces' groups, for figures by group (`metrics.group_rates`).
      group_thresholds: whether they are at one threshold per group too.
      resamples, seed: of the bootstrap; 0 resamples omit the intervals.

    Raises:
      UserError: a different number of labels, more pairs than are kept in memory, no pairs of a
        kind, a FAR outside (0, 1], or an ignored label that no face has.
    """
    labels = checked_labels(labels, len(faces))
    identities, units = np.unique(labels, return_inverse=True)
    one_person = labels_as_units(ignored, identities)
    removed = ignored_positions(units, one_person)
    scores = all_pair_scores(faces, labels, methods) | (scored or {})
    if removed.size:
        for name, split in scores.items():
            scores[name] = split._replace(impostor=np.delete(split.impostor, removed))
    genuine = next(iter(scores.values())).genuine.size
    of_genuine = units[genuine_rows(units, np.arange(genuine)).first][:, None]

    def rows_of_impostors(positions: np.ndarray) -> np.ndarray:
        return np.stack(impostor_rows(units, whole_positions(positions, removed)), axis=1)

    def impostor_units(positions: np.ndarray) -> np.ndarray:
        return units[rows_of_impostors(positions)]

    # A genuine pair lies within one identity: two equal sides.
    sides = Sides(
        np.repeat(of_genuine, 2, axis=1),
        impostor_units,
        identities.size,
        total_without(all_pairs_total(units), units, one_person),
    )
    of_pairs = None
    if groups is not None:
        of_pairs = groups_of_all_pairs(groups, units, genuine, left_out=removed)
    far, thresholds = firm_thresholds(scores, fars)
    listed = listed_pairs(scores, thresholds, genuine_faces(units), rows_of_impostors)
    changed = None
    if HEADLINE in thresholds:
        own = listed[HEADLINE]
        changed = {kind: Changed(own[kind].pairs, own[kind].total) for kind in KINDS}
    evaluated = evaluate_split_pairs(
        scores,
        sides,
        fars=fars,
        groups=of_pairs,
        group_notes=() if groups is None else groups.notes,
        group_thresholds=group_thresholds,
        resamples=resamples,
        seed=seed,
    )
    changed_far = None if changed is None else far
    return AllPairs(evaluated, scores, changed, changed_far, removed.size, listed)


def evaluate_labelled_pairs(
    scores: Mapping[str, ArrayLike],
    same: ArrayLike,
    units: ArrayLike | None,
    *,
    fars: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Verification of any labelled pairs.

    Args:
      scores: {method: [P]}.
      same: bool [P], True for a genuine pair.
      units: int [P, 2], the identities of both sides; intervals are over pairs if None.
      resamples, seed: of the bootstrap; 0 resamples omit the intervals.

    Raises:
      UserError: as `bootstrap_tar`.
    """
    same = np.asarray(same, bool)
    options = {"fars": fars, "resamples": resamples, "seed": seed}
    if units is not None:
        codes, _ = identity_codes(units, same)
        scores = {name: np.asarray(values) for name, values in scores.items()}
        return evaluate_scored_pairs(scores, same, codes, over="identities", **options)
    bootstrap = bootstrap_tar(
        scores,
        same,
        **{**options, "fars": all_fars(fars, np.count_nonzero(~same))},
        baseline=BASELINE if BASELINE in scores else None,
        progress=PROGRESS,
    )
    splits = {name: split_scores(np.asarray(values), same) for name, values in scores.items()}
    evaluated = figures_and_curves(splits, bootstrap, fars)
    if not resamples:
        return evaluated
    return evaluated._replace(notes=(*evaluated.notes, OVER_PAIRS))


def evaluate_scored_pairs(
    scores: Mapping[str, np.ndarray],
    same: np.ndarray,
    units: np.ndarray,
    *,
    over: str,
    fars: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """`evaluate_labelled_pairs` over any units: a genuine pair may be of two of them (templates).

    Memory: 4 bytes per pair and method, and about 40 bytes per pair besides.

    Args:
      scores: {method: float32 [P]}.
      units: int [P, 2], numbered from 0.
      over: what the units are.
      same, fars, resamples, seed: as `evaluate_labelled_pairs`.
    """
    count, of_impostors = int(units.max()) + 1, units[~same]
    return evaluate_split_pairs(
        {name: SplitScores(values[same], values[~same]) for name, values in scores.items()},
        Sides(
            units[same],
            lambda positions: of_impostors[positions],
            count,
            pair_list_total(of_impostors, count=count),
        ),
        fars=fars,
        over=over,
        resamples=resamples,
        seed=seed,
    )


def kfold_figures(
    scores: Mapping[str, np.ndarray],
    same: np.ndarray,
    fold: np.ndarray,
    units: np.ndarray,
    *,
    over: str,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Accuracy ± deviation over folds, EER and the ROC curve of scored pairs.

    The accuracy's intervals keep the folds' thresholds: Σ w_p [p decided right] / Σ w_p over
    resampled pairs.

    Args:
      fold: int [P].
      scores, same, units, over, resamples, seed: as `evaluate_scored_pairs`.
    """
    accuracies = {name: kfold_accuracy(values, same, folds=fold) for name, values in scores.items()}
    options = {"over": over, "resamples": resamples, "seed": seed}
    intervals = bootstrap_means(
        {name: accuracy.correct for name, accuracy in accuracies.items()},
        units,
        count=int(units.max()) + 1,
        baseline=BASELINE,
        **options,
    )
    pairs = evaluate_scored_pairs(scores, same, units, fars=(), **options)
    figures: dict[str, dict[str, Any]] = {}
    for name, accuracy in accuracies.items():
        figures[name] = {
            "accuracy": accuracy.mean,
            "accuracy_deviation": accuracy.deviation,
            "pairs": same.size,
            **{key: pairs.figures[name][key] for key in ("genuine", "impostor", "eer")},
        }
        if name in intervals.differences:
            figures[name]["accuracy_gain"] = accuracy.mean - accuracies[BASELINE].mean
    for name, entries in mean_intervals(intervals).items():
        figures[name] |= {f"accuracy_{kind}": entry for kind, entry in entries.items()}
    return pairs._replace(figures=figures, notes=note_of_few_units(figures, "accuracy", over=over))
