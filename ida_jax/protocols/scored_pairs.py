"""Figures, intervals and curves of pairs that are scored already, by every method.

P pairs, G genuine and n impostor pairs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from ida_jax.metrics.bootstrap import (
    Bootstrap,
    BootstrapPoint,
    bootstrap_deepening,
    bootstrap_means,
    bootstrap_tar,
    tar_intervals,
)
from ida_jax.metrics.evaluation import (
    FEWEST_FALSE_ACCEPTS,
    Band,
    Evaluation,
    split_scores,
    verification_figures,
)
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.resampling import identity_codes, pair_list_total, tail
from ida_jax.metrics.roc import SplitScores, tar_at_far

BASELINE = "cosine"
PROGRESS = partial(tqdm, desc="bootstrap", unit="resample", delay=2, leave=False)
OVER_PAIRS = "the intervals take pairs for independent, and so are too narrow: no identities"
_BAND_POINTS = 25
# A band's cost grows with the false accepts of its highest FAR; the curve goes on without one.
_BAND_FALSE_ACCEPTS = 200_000


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
      units: int [P, 2], the identities of both sides; intervals are over pairs where None.
      fars: the FARs of the figures.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: as `bootstrap_tar`.
    """
    same = np.asarray(same, bool)
    options = {"fars": fars, "resamples": resamples, "seed": seed}
    if units is not None:
        codes, _ = identity_codes(units, same)
        scores = {name: np.asarray(each) for name, each in scores.items()}
        return evaluate_scored_pairs(scores, same, codes, over="identities", **options)
    bootstrap = bootstrap_tar(
        scores,
        same,
        **{**options, "fars": all_fars(fars, np.count_nonzero(~same))},
        baseline=BASELINE if BASELINE in scores else None,
        progress=PROGRESS,
    )
    splits = {name: split_scores(np.asarray(each), same) for name, each in scores.items()}
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

    Memory: 4 bytes a pair and method, and about 40 bytes a pair besides.

    Args:
      scores: {method: float32 [P]}.
      same: bool [P].
      units: int [P, 2], numbered from 0.
      over: what the units are.
      fars: the FARs of the figures.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.
    """
    count = int(units.max()) + 1
    bootstrap = bootstrap_deepening(
        lambda far: {n: tail(each, same, units, highest_far=far) for n, each in scores.items()},
        fars=all_fars(fars, np.count_nonzero(~same)),
        units=count,
        total=pair_list_total(units[~same], count=count),
        over=over,
        baseline=BASELINE,
        resamples=resamples,
        seed=seed,
        progress=PROGRESS,
    )
    splits = {name: split_scores(each, same) for name, each in scores.items()}
    return figures_and_curves(splits, bootstrap, fars)


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
    """Accuracy ± deviation by folds, EER, and the ROC curve, of pairs that are scored already.

    Intervals of the accuracy take the folds' thresholds as they are: over resampled pairs,
    Σ w_p [p decided right] / Σ w_p.

    Args:
      scores: {method: float32 [P]}.
      same: bool [P].
      fold: int [P].
      units: int [P, 2], numbered from 0.
      over: what the units are.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.
    """
    accuracies = {name: kfold_accuracy(each, same, folds=fold) for name, each in scores.items()}
    options = {"over": over, "resamples": resamples, "seed": seed}
    sure = bootstrap_means(
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
        if name in sure.methods:
            figures[name]["accuracy_interval"] = list(sure.methods[name])
        if name in sure.differences:
            figures[name]["accuracy_gain"] = accuracy.mean - accuracies[BASELINE].mean
            figures[name]["accuracy_gain_interval"] = list(sure.differences[name])
    return Evaluation(figures, pairs.curves)


def band_fars(impostors: int) -> tuple[float, ...]:
    """The FARs of a curve's band: up to 25 whole false accepts of n, evenly in log FAR from 1/n.

    They end at FAR 1, or at 200,000 false accepts.
    """
    reach = min(impostors, _BAND_FALSE_ACCEPTS)
    accepts = np.unique(np.rint(np.geomspace(1, max(reach, 1), _BAND_POINTS)))
    return tuple((accepts / max(impostors, 1)).tolist())


def roc_bands(splits: Mapping[str, SplitScores], bootstrap: Bootstrap) -> dict[str, Band]:
    """{method: its ROC curve up to FAR 1}, with the bootstrap's intervals as a band as far as they
    go; without one where there was no bootstrap."""
    bands = {}
    for name, split in splits.items():
        n = split.impostor.size
        points = {p.far: p for p in bootstrap.methods.get(name, ()) if p.far * n >= 1 - 1e-9}
        known = sorted(points or band_fars(n))
        # On from the last of them with as many points a decade.
        rest = np.geomspace(known[-1], 1, 11)[1:].tolist() if known[-1] < 1 else []
        far = np.array(known + rest)
        tar = [point.tar for point in tar_at_far(*split, far.tolist())]
        ends = np.array([_ends(points.get(each)) for each in far.tolist()])
        bands[name] = Band(far, np.array(tar), *ends.T)
    return bands


def notes_of_few(
    figures: Mapping[str, Mapping[str, Any]],
    *,
    counts: str = "false_accepts",
    rate: str = "FAR",
    decided: str = "TAR",
) -> tuple[str, ...]:
    """A sentence for each rate at which fewer than 10 errors decide a method's figure.

    Args:
      figures: {method: figures}.
      counts: the key of the errors behind each rate.
      rate: what the rate is called.
      decided: what the figure is called.
    """
    notes = []
    what = counts.replace("_", " ")
    for at in next(iter(figures.values()), {counts: {}})[counts]:
        found = [of[counts][at] for of in figures.values()]
        low, high = min(found), max(found)
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
    sure = tar_intervals(bootstrap, fars=fars)
    figures = {
        name: verification_figures(split, fars=fars) | sure.get(name, {})
        for name, split in splits.items()
    }
    return Evaluation(figures, roc_bands(splits, bootstrap), notes_of_few(figures))


def all_fars(fars: Sequence[float], impostors: int) -> tuple[float, ...]:
    """The figures' FARs and the band's, ascending, each once."""
    return tuple(sorted({*map(float, fars), *band_fars(impostors)}))


def _ends(point: BootstrapPoint | None) -> tuple[float, float]:
    return (np.nan, np.nan) if point is None else tuple(point.tar)
