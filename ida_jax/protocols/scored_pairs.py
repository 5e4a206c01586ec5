"""Scored pairs by kind to figures, intervals and curves: what every verification ends in.

P pairs, G genuine and n impostor pairs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ida_jax.common.progress import progress_bar
from ida_jax.metrics.bootstrap import (
    Bootstrap,
    bootstrap_deepening,
)
from ida_jax.metrics.evaluation import (
    FEWEST_FALSE_ACCEPTS,
    Band,
    Evaluation,
    verification_figures,
)
from ida_jax.metrics.group_rates import Sides, group_rates
from ida_jax.metrics.groups import PairGroups
from ida_jax.metrics.interval_figures import note_of_few_units, tar_intervals
from ida_jax.metrics.resampling import (
    Tail,
    split_tail,
)
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.metrics.threshold_curve import ThresholdCurve, threshold_curves, with_groups
from ida_jax.protocols.group_figures import with_group_rates
from ida_jax.rescoring.method_table import BASELINE

PROGRESS = partial(progress_bar, desc="bootstrap", unit="resample", delay=2, leave=False)
_BAND_POINTS = 25
# A band's cost grows with the false accepts of its highest FAR; the curve goes on without one.
_BAND_FALSE_ACCEPTS = 200_000


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
      group_thresholds: whether these figures are at one threshold per group too.
      fars, resamples, seed: as `evaluate_labelled_pairs`.
    """
    impostors = next(iter(scores.values())).impostor.size
    bootstrap = bootstrap_split_pairs(
        scores,
        sides,
        fars=all_fars(fars, impostors),
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
            progress=PROGRESS,
        )
    for split in scores.values():
        for kind in split:
            kind.sort()
    evaluated = figures_and_curves(scores, bootstrap, fars)
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
        tails, fars=fars, units=sides.count, total=sides.total, progress=PROGRESS, **options
    )


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


def figures_and_curves(
    splits: Mapping[str, SplitScores], bootstrap: Bootstrap, fars: Sequence[float]
) -> Evaluation:
    """The evaluation of scores by kind, ascending, with the intervals of their bootstrap."""
    intervals = tar_intervals(bootstrap, fars=fars)
    figures = {
        name: verification_figures(split, fars=fars) | intervals.get(name, {})
        for name, split in splits.items()
    }
    notes = notes_of_few(figures) + note_of_few_units(figures, "tar@far", over=bootstrap.over)
    return Evaluation(
        figures, roc_bands(splits, bootstrap), notes, threshold_curves(splits, bootstrap, fars)
    )


def all_fars(fars: Sequence[float], impostors: int) -> tuple[float, ...]:
    """The figures' FARs and the band's, ascending, each once."""
    return tuple(sorted({*map(float, fars), *band_fars(impostors)}))
