"""Verification of pairs by every method: figures, their intervals, and curves with bands.

N faces, P pairs, D embedding, G genuine and n impostor pairs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from ida_jax.errors import UserError
from ida_jax.evaluation.evaluated import Band, Evaluated
from ida_jax.protocols.bootstrap import bootstrap_means, bootstrap_tar, deep_enough, tar_intervals
from ida_jax.protocols.decisions import Changed, changed_decisions
from ida_jax.protocols.intervals import Bootstrap, BootstrapPoint
from ida_jax.protocols.pair_lists import PairList
from ida_jax.protocols.roc import SplitScores, tar_at_far
from ida_jax.protocols.score_figures import (
    FEWEST_FALSE_ACCEPTS,
    split_scores,
    verification_figures,
)
from ida_jax.protocols.tails import (
    Tail,
    all_pairs_total,
    genuine_rows,
    impostor_rows,
    pair_list_total,
    split_tail,
    tail,
)
from ida_jax.protocols.verification import kfold_accuracy
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs
from ida_jax.rescoring.terms import FaceTerms

_BASELINE = "cosine"
_COMPARED = "ida_r"
_BAND_POINTS = 25
# A band's cost grows with the false accepts of its highest FAR; the curve goes on without one.
_BAND_FALSE_ACCEPTS = 200_000
_PROGRESS = partial(tqdm, desc="bootstrap", unit="resample", delay=2, leave=False)


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
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: as `score_pairs`, labels of another number, or no pairs of a kind.
    """
    labels = _checked_labels(labels, len(faces))
    same = np.asarray(pair_list.same, bool)
    scores = {name: score_pairs(faces, pair_list.pairs, terms) for name, terms in methods.items()}
    identities, units = np.unique(labels[pair_list.pairs], return_inverse=True)
    units = units.reshape(-1, 2)
    accuracies = {
        name: kfold_accuracy(each, same, folds=pair_list.fold) for name, each in scores.items()
    }
    options = {"baseline": _BASELINE, "resamples": resamples, "seed": seed}
    sure = bootstrap_means(
        {name: accuracy.correct for name, accuracy in accuracies.items()},
        units,
        count=identities.size,
        **options,
    )
    figures: dict[str, dict[str, Any]] = {}
    for name, accuracy in accuracies.items():
        figures[name] = {
            "accuracy": accuracy.mean,
            "accuracy_deviation": accuracy.deviation,
            "pairs": same.size,
        }
        if name in sure.methods:
            figures[name]["accuracy_interval"] = list(sure.methods[name])
        if name in sure.differences:
            figures[name]["accuracy_gain"] = accuracy.mean - accuracies[_BASELINE].mean
            figures[name]["accuracy_gain_interval"] = list(sure.differences[name])
    bootstrap = deep_enough(
        lambda far: {n: tail(each, same, units, highest_far=far) for n, each in scores.items()},
        fars=band_fars(np.count_nonzero(~same)),
        units=identities.size,
        total=pair_list_total(units[~same], count=identities.size),
        progress=_PROGRESS,
        **options,
    )
    splits = {name: split_scores(each, same) for name, each in scores.items()}
    return Evaluated(figures, roc_bands(splits, bootstrap))


def evaluate_all_pairs(
    faces: np.ndarray,
    labels: ArrayLike,
    methods: Mapping[str, FaceTerms],
    *,
    fars: Sequence[float],
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
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: as `score_all_pairs`, no pairs of a kind, or a FAR outside (0, 1].
    """
    labels = _checked_labels(labels, len(faces))
    identities, units = np.unique(labels, return_inverse=True)
    scores = {name: score_all_pairs(faces, labels, terms) for name, terms in methods.items()}
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
        fars=_all_fars(fars, impostors),
        units=identities.size,
        total=all_pairs_total(units),
        baseline=_BASELINE,
        resamples=resamples,
        seed=seed,
        progress=_PROGRESS,
    )
    changed_far, changed = _changed(scores, units, fars)
    for split in scores.values():
        for kind in split:
            kind.sort()
    return AllPairs(_evaluated(scores, bootstrap, fars), scores, changed, changed_far)


def evaluate_labelled_pairs(
    scores: Mapping[str, ArrayLike],
    same: ArrayLike,
    units: ArrayLike | None,
    *,
    fars: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluated:
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
    bootstrap = bootstrap_tar(
        scores,
        same,
        fars=_all_fars(fars, np.count_nonzero(~same)),
        identities=units,
        baseline=_BASELINE if _BASELINE in scores else None,
        resamples=resamples,
        seed=seed,
        progress=_PROGRESS,
    )
    splits = {name: split_scores(np.asarray(each), same) for name, each in scores.items()}
    evaluated = _evaluated(splits, bootstrap, fars)
    if resamples and units is None:
        note = "the intervals take pairs for independent, and so are too narrow: no identities"
        return evaluated._replace(notes=(*evaluated.notes, note))
    return evaluated


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


def few_false_accepts(figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A sentence for each FAR at which fewer than 10 false accepts decide a method's TAR."""
    notes = []
    first = next(iter(figures.values()), {"false_accepts": {}})
    for far in first["false_accepts"]:
        counts = [of["false_accepts"][far] for of in figures.values()]
        low, high = min(counts), max(counts)
        if low < FEWEST_FALSE_ACCEPTS:
            number = f"{low}" if low == high else f"{low} to {high}"
            notes.append(
                f"at FAR {far} the TAR rests on {number} false accepts: fewer than "
                f"{FEWEST_FALSE_ACCEPTS} say little"
            )
    return tuple(notes)


def _evaluated(
    splits: Mapping[str, SplitScores], bootstrap: Bootstrap, fars: Sequence[float]
) -> Evaluated:
    sure = tar_intervals(bootstrap, fars=fars)
    figures = {
        name: verification_figures(split, fars=fars) | sure.get(name, {})
        for name, split in splits.items()
    }
    return Evaluated(figures, roc_bands(splits, bootstrap), few_false_accepts(figures))


def _changed(
    scores: Mapping[str, SplitScores], labels: np.ndarray, fars: Sequence[float]
) -> tuple[float | None, Changed | None]:
    """The FAR and the pairs of `AllPairs`, from scores in `score_all_pairs`' order."""
    if _BASELINE not in scores or _COMPARED not in scores:
        return None, None
    base, other = scores[_BASELINE], scores[_COMPARED]
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


def _all_fars(fars: Sequence[float], impostors: int) -> tuple[float, ...]:
    """The figures' FARs and the band's, ascending, each once."""
    return tuple(sorted({*map(float, fars), *band_fars(impostors)}))


def _ends(point: BootstrapPoint | None) -> tuple[float, float]:
    return (np.nan, np.nan) if point is None else tuple(point.tar)


def _checked_labels(labels: ArrayLike, faces: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (faces,):
        raise UserError(f"{labels.size} labels for {faces} faces: expected one each")
    return labels
