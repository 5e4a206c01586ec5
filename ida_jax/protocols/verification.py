"""Verification of pairs by every method: figures, their intervals, and curves with bands.

`evaluate_kfold` and `evaluate_all_pairs` score pairs of faces; the others take scores.

N faces, P pairs, D embedding, G genuine and n impostor pairs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.progress import progress_bar
from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.bootstrap import (
    Bootstrap,
    bootstrap_deepening,
    bootstrap_means,
    bootstrap_tar,
)
from ida_jax.metrics.decisions import Changed, Kind
from ida_jax.metrics.evaluation import (
    FEWEST_FALSE_ACCEPTS,
    Band,
    Evaluation,
    split_scores,
    verification_figures,
)
from ida_jax.metrics.group_rates import Sides, group_rates
from ida_jax.metrics.groups import FaceGroups, PairGroups, groups_of_all_pairs
from ida_jax.metrics.ignored import (
    ignored_positions,
    labels_as_units,
    total_without,
    whole_positions,
)
from ida_jax.metrics.interval_figures import mean_intervals, note_of_few_units, tar_intervals
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.resampling import (
    Tail,
    all_pairs_total,
    genuine_rows,
    identity_codes,
    impostor_rows,
    pair_list_total,
    split_tail,
)
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.metrics.threshold_curve import ThresholdCurve, threshold_curves, with_groups
from ida_jax.protocols.failures import changed_pairs_of_all, worst_pairs_of_all
from ida_jax.protocols.group_figures import with_group_rates
from ida_jax.rescoring.method_table import BASELINE
from ida_jax.rescoring.pairs import all_pair_scores, pair_scores
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import checked_labels

_PROGRESS = partial(progress_bar, desc="bootstrap", unit="resample", delay=2, leave=False)
OVER_PAIRS = "the intervals take pairs for independent, and so are too narrow: no identities"
_BAND_POINTS = 25
# A band's cost grows with the false accepts of its highest FAR; the curve goes on without one.
_BAND_FALSE_ACCEPTS = 200_000


class AllPairs(NamedTuple):
    """Verification over all pairs of faces.

    Attributes:
      evaluated: figures, curves and notes.
      scores: {method: its scores, ascending}.
      changed: the pairs, int64 [≤ 24, 2] rows of faces, on which the headline method and the
        baseline decide differently at `changed_far`, by kind; None without either method or FAR.
      changed_far: the lowest FAR at which both have at least 10 false accepts.
      ignored: the number of impostor pairs that were left out.
      worst: {method: {whether genuine: int64 [≤ 20, 2], rows of faces, the worst first}}.
    """

    evaluated: Evaluation
    scores: dict[str, SplitScores]
    changed: dict[Kind, Changed] | None
    changed_far: float | None
    ignored: int = 0
    worst: Mapping[str, Mapping[bool, np.ndarray]] = MappingProxyType({})


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
) -> Evaluation:
    """A k-fold verification protocol (LFW, CALFW): accuracy ± deviation, and the list's ROC curve.

    Intervals are over the identities of the list.

    Args:
      faces: float32 [N, D], unit rows.
      methods: {name in the results: the faces' terms}.
      labels: int [N], the faces' identities.
      bad: bool [N], faces whose pairs score NaN, which never matches; none if None.
      scored: {further method: scores of the pairs, [P]}.
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
    ignored: ArrayLike | None = None,
    groups: FaceGroups | None = None,
    group_thresholds: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> AllPairs:
    """Verification over all N(N−1)/2 pairs of faces, intervals over their identities.

    Memory: 4 bytes a pair and method, and about 40 bytes a pair besides.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N], the faces' identities.
      methods: {name in the results: the faces' terms}.
      scored: {further method: scores in `score_all_pairs`' order}; sorted in place.
      ignored: int [M, 2], pairs of labels that show one person: the pairs of faces between them are
        left out, and all else is as it was, the bootstrap's identities too.
      groups: the N faces' groups, for figures by group (`metrics.group_rates`).
      group_thresholds: whether they are at a threshold a group too.
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
    changed_far, changed = changed_pairs_of_all(scores, units, rows_of_impostors, fars)
    worst = worst_pairs_of_all(scores, units, rows_of_impostors)
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
    return AllPairs(evaluated, scores, changed, changed_far, removed.size, worst)


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
        **{**options, "fars": _all_fars(fars, np.count_nonzero(~same))},
        baseline=BASELINE if BASELINE in scores else None,
        progress=_PROGRESS,
    )
    splits = {name: split_scores(np.asarray(values), same) for name, values in scores.items()}
    evaluated = _figures_and_curves(splits, bootstrap, fars)
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

    Memory: 4 bytes a pair and method, and about 40 bytes a pair besides.

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


def evaluate_split_pairs(
    scores: Mapping[str, SplitScores],
    sides: Sides,
    *,
    fars: Sequence[float],
    over: str = "identities",
    groups: PairGroups | None = None,
    group_notes: Sequence[str] = (),
    group_thresholds: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """`evaluate_scored_pairs` of scores by kind, which are sorted in place: none is copied.

    Args:
      scores: {method: its scores}, float32 [G] and [n].
      sides: the pairs' units.
      over: what the units are.
      groups: the pairs' groups, for figures by group.
      group_notes: what a reader must know of the groups.
      group_thresholds: whether these figures are at a threshold a group too.
      fars, resamples, seed: as `evaluate_labelled_pairs`.
    """
    impostors = next(iter(scores.values())).impostor.size
    bootstrap = bootstrap_split_pairs(
        scores,
        sides,
        fars=_all_fars(fars, impostors),
        over=over,
        baseline=BASELINE,
        resamples=resamples,
        seed=seed,
    )
    rates: dict[str, dict[str, Any]] = {}
    grouped: dict[str, ThresholdCurve] = {}
    if groups is not None:
        grouped = {
            name: with_groups(curve, scores[name].impostor, groups.impostor, groups.names)
            for name, curve in threshold_curves(scores, bootstrap, fars).items()
        }
        rates = group_rates(
            scores,
            groups,
            sides,
            fars=fars,
            own_thresholds=group_thresholds,
            resamples=resamples,
            seed=seed,
            progress=_PROGRESS,
        )
    for split in scores.values():
        for kind in split:
            kind.sort()
    evaluated = _figures_and_curves(scores, bootstrap, fars)
    return evaluated if groups is None else with_group_rates(evaluated, rates, group_notes, grouped)


def bootstrap_split_pairs(
    scores: Mapping[str, SplitScores], sides: Sides, *, fars: Sequence[float], **options: Any
) -> Bootstrap:
    """`bootstrap_deepening` of scores by kind, in any order.

    Args:
      scores, sides: as `evaluate_split_pairs`.
      fars: rates in (0, 1].
      **options: those of `bootstrap_tails`.
    """

    def tails(highest_far: float) -> dict[str, Tail]:
        return {
            name: split_tail(
                *split,
                genuine_units=sides.genuine,
                impostor_units=sides.impostor,
                highest_far=highest_far,
            )
            for name, split in scores.items()
        }

    return bootstrap_deepening(
        tails, fars=fars, units=sides.count, total=sides.total, progress=_PROGRESS, **options
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


def band_fars(impostors: int) -> tuple[float, ...]:
    """The FARs of a curve's band: up to 25 whole false accepts of n, evenly in log FAR from 1/n.

    They end at FAR 1, or at 200,000 false accepts.
    """
    reach = min(impostors, _BAND_FALSE_ACCEPTS)
    accepts = np.unique(np.rint(np.geomspace(1, max(reach, 1), _BAND_POINTS)))
    return tuple((accepts / max(impostors, 1)).tolist())


def roc_bands(splits: Mapping[str, SplitScores], bootstrap: Bootstrap) -> dict[str, Band]:
    """{method: its ROC curve up to FAR 1}, its band the bootstrap's intervals as far as they go."""
    bands = {}
    for name, split in splits.items():
        n = split.impostor.size
        points = {p.far: p for p in bootstrap.methods.get(name, ()) if p.far * n >= 1 - 1e-9}
        known = sorted(points or band_fars(n))
        # Ten more points up to FAR 1.
        rest = np.geomspace(known[-1], 1, 11)[1:].tolist() if known[-1] < 1 else []
        far = np.array(known + rest)
        tar = [point.tar for point in tar_at_far(*split, far.tolist())]
        ends = np.array([points[at].tar if at in points else (np.nan,) * 2 for at in far.tolist()])
        bands[name] = Band(far, np.array(tar), *ends.T)
    return bands


def notes_of_few(
    figures: Mapping[str, Mapping[str, Any]],
    *,
    counts: str = "false_accepts",
    rate: str = "FAR",
    decided: str = "TAR",
) -> tuple[str, ...]:
    """A sentence for each rate at which fewer than 10 errors decide a method's figure."""
    notes = []
    what = counts.replace("_", " ")
    for at in next(iter(figures.values()), {counts: {}})[counts]:
        errors = [of_method[counts][at] for of_method in figures.values()]
        low, high = min(errors), max(errors)
        if low < FEWEST_FALSE_ACCEPTS:
            number = f"{low}" if low == high else f"{low} to {high}"
            notes.append(
                f"at {rate} {at} the {decided} rests on {number} {what}: fewer than "
                f"{FEWEST_FALSE_ACCEPTS} say little"
            )
    return tuple(notes)


def _figures_and_curves(
    splits: Mapping[str, SplitScores], bootstrap: Bootstrap, fars: Sequence[float]
) -> Evaluation:
    intervals = tar_intervals(bootstrap, fars=fars)
    figures = {
        name: verification_figures(split, fars=fars) | intervals.get(name, {})
        for name, split in splits.items()
    }
    notes = notes_of_few(figures) + note_of_few_units(figures, "tar@far", over=bootstrap.over)
    return Evaluation(
        figures, roc_bands(splits, bootstrap), notes, threshold_curves(splits, bootstrap, fars)
    )


def _all_fars(fars: Sequence[float], impostors: int) -> tuple[float, ...]:
    """The figures' FARs and the band's, ascending, each once."""
    return tuple(sorted({*map(float, fars), *band_fars(impostors)}))
