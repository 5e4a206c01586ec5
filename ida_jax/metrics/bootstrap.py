"""Confidence intervals by the paired bootstrap, over identities, over templates or over pairs.

P pairs, I units (identities or templates), G genuine and n impostor pairs, U sides of a pair,
R resamples, F FARs, M methods.

Over units: a resample draws I units with replacement, unit a coming w_a times. A pair within a then
counts w_a times, a pair of a and b w_a · w_b times: a person drawn twice brings two copies of
everything, and copies of one person make no impostor pairs. Each resample is scored by `roc`'s
rule, as if its pairs were written out that often. Pairs that share a person are drawn together, so
that the intervals account for their dependence.

Over pairs, where identities are not known: G genuine and n impostor pairs are drawn with
replacement. That treats pairs as independent, so that intervals come out too narrow.

All methods are scored on the same resamples, so that their difference has an interval of its own,
and that several can be compared at once (comparison.py). interval_figures.py names the results.

Intervals of rates hold the middle of the resamples: 95 % of them where many units have errors, more
where few do (few_units.py). Those of thresholds are always the middle 95 %.
Resamples depend on the seed and on I alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.comparison import Compared, percentile_intervals, rate_intervals
from ida_jax.metrics.few_units import units_behind
from ida_jax.metrics.resampling import (
    Draw,
    ShortTail,
    Tail,
    Total,
    depth_of_pairs,
    draws_of_pairs,
    draws_of_units,
    identity_codes,
    operating_points,
    pair_list_total,
    pair_weights,
    rank_tail,
    require_units,
    tail,
    unit_weights,
)
from ida_jax.metrics.roc import Interval, accepted_impostors


class BootstrapPoint(NamedTuple):
    """The intervals of one method's TAR and threshold at one FAR.

    Attributes:
      units: the effective number of units behind the TAR (`few_units.units_behind`).
    """

    far: float
    tar: Interval
    threshold: Interval
    units: float


class BootstrapDifference(NamedTuple):
    """The interval of a method's TAR minus the baseline's at one FAR.

    Attributes:
      share_above_0: the share of resamples in which the method's TAR is the higher.
      gain: the difference itself, of the pairs as they are.
    """

    far: float
    tar: Interval
    share_above_0: float
    gain: float


class Bootstrap(NamedTuple):
    """Intervals by method, and of the differences from the baseline.

    Attributes:
      over: what was resampled: "identities", "templates" or "pairs".
      resamples: how many count; one without genuine or impostor pairs does not.
      methods: {method: a point for each FAR}.
      differences: {method: a difference for each FAR}, of all methods but the baseline.
      compared: {method: one for each FAR}, all methods compared at once; empty for a single one.
    """

    over: str
    units: int
    resamples: int
    methods: dict[str, tuple[BootstrapPoint, ...]]
    differences: dict[str, tuple[BootstrapDifference, ...]]
    compared: dict[str, tuple[Compared, ...]]


class MeanBootstrap(NamedTuple):
    """Intervals of mean outcomes; over and units as in `Bootstrap`.

    Attributes:
      resamples: how many count; one without pairs does not.
      methods: {method: interval of its mean}.
      differences: {method: interval of its mean minus the baseline's}.
      compared: {method: its comparison}, all methods at once; empty for a single one.
      behind: {method: the effective number of units behind its mean}.
    """

    over: str
    units: int
    resamples: int
    methods: dict[str, Interval]
    differences: dict[str, Interval]
    compared: dict[str, Compared]
    behind: dict[str, float]


class Resampled(NamedTuple):
    """Rates of M methods at F FARs in R resamples.

    Attributes:
      names: of the methods.
      tars: float64 [R, M, F].
      thresholds: float64 [R, M, F].
      observed: float64 [M, F], the TARs of the pairs as they are.
      behind: float64 [M, F], the effective number of units behind these.
    """

    names: tuple[str, ...]
    tars: np.ndarray
    thresholds: np.ndarray
    observed: np.ndarray
    behind: np.ndarray


def bootstrap_tails(
    tails: Mapping[str, Tail],
    *,
    units: int,
    total: Total,
    fars: Sequence[float],
    over: str = "identities",
    baseline: str | None = "cosine",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Bootstrap:
    """Percentile intervals of TAR, threshold and TAR difference at each FAR, over units.

    A resample weighs the highest impostors down to its largest rank ⌊f·W⌋, no more.

    Args:
      tails: {method: its tail}, all of the same pairs.
      units: I.
      total: the impostor pairs' weight W in each resample: `pair_list_total`, `all_pairs_total`.
      fars: [F] rates in (0, 1], none above the tails' `highest_far`.
      over: what the units are, for the result.
      baseline: the method that the others are compared with; no differences if it is not there.
      resamples: R; 0 gives empty results.
      level: the intervals' confidence, in (0, 1).
      progress: wraps the resamples' iterator, to show progress.

    Raises:
      ShortTail: a threshold that is not among the tails' impostors; take `highest_far` higher, or 1
        for all of them.
      UserError: 1 resample or fewer than 0, a FAR outside (0, 1], or no resample with pairs of both
        kinds.
    """
    ones = np.ones(units, np.int32)
    whole = Draw(ones, ones, next(iter(tails.values())).impostors)
    return _bootstrap(
        tails,
        whole,
        draws_of_units(np.random.default_rng(seed), units, total),
        fars=fars, over=over, units=units, baseline=baseline, resamples=resamples, level=level,
        progress=progress,
    )  # fmt: skip


def bootstrap_tar(
    scores_by_method: Mapping[str, ArrayLike],
    same: ArrayLike,
    *,
    fars: Sequence[float],
    identities: ArrayLike | None = None,
    baseline: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Bootstrap:
    """`bootstrap_tails` of labelled pairs' scores, over identities or over pairs.

    Args:
      scores_by_method: {method: [P] scores}, higher meaning more alike; NaN stands for −∞.
      same: bool [P], True for a genuine pair.
      fars: [F] rates in (0, 1].
      identities: int [P, 2], the identities of both sides of each pair; over pairs where None.
      baseline: the method that the others are compared with.
      resamples: R.
      level: the intervals' confidence, in (0, 1).
      progress: wraps the resamples' iterator, to show progress.

    Raises:
      UserError: no pairs of a kind, lengths that differ, an unknown baseline, identities that
        contradict `same`, 1 resample or fewer than 0, or none with pairs of both kinds.
    """
    same = np.asarray(same, bool)
    for name, scores in scores_by_method.items():
        if np.shape(scores) != same.shape or same.ndim != 1:
            raise UserError(
                f"scores of shape {np.shape(scores)} ({name}) and labels of shape {same.shape} "
                "were given, expected one score and one label for each pair"
            )
    if baseline is not None and baseline not in scores_by_method:
        listed = ", ".join(scores_by_method)
        raise UserError(f"unknown baseline '{baseline}': choose one of {listed}")
    options: dict[str, Any] = {
        "fars": fars, "baseline": baseline, "resamples": resamples, "seed": seed, "level": level,
        "progress": progress,
    }  # fmt: skip
    if identities is None:
        return _over_pairs(scores_by_method, same, **options)
    codes, units = identity_codes(identities, same)
    options |= {"units": units, "total": pair_list_total(codes[~same], count=units)}

    def tails(highest_far: float) -> dict[str, Tail]:
        return {
            name: tail(scores, same, codes, highest_far=highest_far)
            for name, scores in scores_by_method.items()
        }

    return bootstrap_deepening(tails, **options)


def bootstrap_deepening(
    tails: Callable[[float], Mapping[str, Tail]], *, fars: Sequence[float], **options: Any
) -> Bootstrap:
    """`bootstrap_tails` of tails of the usual depth, or of all impostors where that is too little.

    Args:
      tails: the methods' tails for a highest FAR.
      fars: as `bootstrap_tails`, like all options.
    """
    try:
        return bootstrap_tails(tails(max(fars)), fars=fars, **options)
    except ShortTail:
        return bootstrap_tails(tails(1.0), fars=fars, **options)


def bootstrap_means(
    outcomes: Mapping[str, ArrayLike],
    units: ArrayLike,
    *,
    count: int,
    over: str = "identities",
    baseline: str | None = "cosine",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> MeanBootstrap:
    """Percentile intervals of mean outcomes, and of their differences, over units.

    The mean is Σ_p w_p o_p / Σ_p w_p, w_p being the pair's weight in the resample. With decisions
    at fixed thresholds it is an accuracy; with hits it is a rank-k rate.

    Args:
      outcomes: {method: float or bool [P], between 0 and 1}.
      units: int [P, U], each pair's units.
      count: I.
      over: what the units are, for the result.
      baseline: the method that the others are compared with; no differences if it is not there.
      resamples: R; 0 gives empty results.
      seed: of the draws: the same one gives the resamples of `bootstrap_tails`.
      level: the intervals' confidence, in (0, 1).
    """
    values = {name: np.asarray(given, np.float64) for name, given in outcomes.items()}
    units = np.asarray(units)
    for name, given in values.items():
        if given.shape != (len(units),):
            raise UserError(
                f"outcomes of shape {list(given.shape)} ({name}) were given for {len(units)} "
                "pairs: expected one each"
            )
    require_units(units, len(units), count=count)
    _require_resamples(resamples)
    if not resamples:
        return MeanBootstrap(over, count, 0, {}, {}, {}, {})
    # The last row gives each resample's weight.
    stacked = np.stack([*values.values(), np.ones(len(units))])
    sums, batches = [], unit_weights(np.random.default_rng(seed), count)
    if np.array_equal(units[:, 0], units[:, -1]):
        by_unit = np.stack([np.bincount(units[:, 0], row, minlength=count) for row in stacked])
        for batch in batches:
            sums += list((by_unit @ batch.T).T)
            if len(sums) >= resamples:
                break
    else:
        weights = pair_weights(units.astype(np.int32))
        tables = (table for batch in batches for table in batch)
        for _, table in zip(range(resamples), tables, strict=False):
            sums.append(stacked @ weights(table, 0, None).astype(np.float64))
    drawn = np.array(sums[:resamples])
    drawn = drawn[drawn[:, -1] > 0]
    if not len(drawn):
        raise UserError(f"none of {resamples} resamples of {count} {over} has pairs: expected more")
    means = (drawn[:, :-1] / drawn[:, -1:])[:, :, None]
    observed = np.array([[given.mean()] for given in values.values()])
    behind = [units_behind(given, units) for given in values.values()]
    summary = rate_intervals(
        tuple(values), means, observed, np.array(behind)[:, None], baseline=baseline, level=level
    )
    firsts = ({name: of[0] for name, of in part.items()} for part in summary)
    return MeanBootstrap(over, count, len(drawn), *firsts, dict(zip(values, behind, strict=True)))


def _over_pairs(
    scores_by_method: Mapping[str, ArrayLike], same: np.ndarray, *, seed: int, **options: Any
) -> Bootstrap:
    """The bootstrap over pairs: each pair is a unit, drawn among those of its kind."""
    genuine = np.count_nonzero(same)
    impostors = same.size - genuine
    units = np.where(same, np.cumsum(same), np.cumsum(~same))[:, None] - 1
    highest = max(options["fars"])
    tails = {
        name: tail(scores, same, units, highest_far=highest)
        for name, scores in scores_by_method.items()
    }
    depth = min(impostors, depth_of_pairs(accepted_impostors(highest, impostors)))
    drawn = np.unique(np.concatenate([t.impostor_units[:depth, 0] for t in tails.values()]))
    short = {
        name: method._replace(
            impostor=method.impostor[:depth],
            impostor_units=np.searchsorted(drawn, method.impostor_units[:depth]),
        )
        for name, method in tails.items()
    }
    draws = draws_of_pairs(
        np.random.default_rng(seed), genuine=genuine, kept=drawn.size, impostors=impostors
    )
    whole = Draw(np.ones(genuine, np.int64), np.ones(drawn.size, np.int64), impostors)
    return _bootstrap(short, whole, draws, over="pairs", units=same.size, **options)


def resample(
    tails: Mapping[str, Tail],
    whole: Draw,
    draws: Iterator[Draw],
    *,
    fars: Sequence[float],
    over: str,
    units: int,
    resamples: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Resampled:
    """The methods' rates in the draws that have pairs of both kinds, and in `whole`."""
    methods = tuple(map(rank_tail, tails.values()))
    points = [
        at_fars
        for _, draw in zip(progress(range(resamples)), draws, strict=False)
        if (at_fars := operating_points(methods, draw, fars)) is not None
    ]
    if not points:
        raise UserError(
            f"none of {resamples} resamples has pairs of both kinds: expected more units"
        )
    tars, thresholds = np.moveaxis(np.array(points, np.float64), 2, 0)
    observed = operating_points(methods, whole, fars)
    behind = [
        [units_behind(of.genuine > t, of.genuine_units) for t in at.threshold]
        for of, at in zip(tails.values(), observed, strict=True)
    ]
    seen = np.array([at.tar for at in observed])
    return Resampled(tuple(tails), tars, thresholds, seen, np.array(behind))


def _bootstrap(
    tails: Mapping[str, Tail],
    whole: Draw,
    draws: Iterator[Draw],
    *,
    fars: Sequence[float],
    over: str,
    units: int,
    baseline: str | None,
    resamples: int,
    level: float,
    progress: Callable[[Iterable], Iterable],
) -> Bootstrap:
    """The intervals from the draws; `whole` is the pairs as they are."""
    _require_resamples(resamples)
    if not resamples:
        return Bootstrap(over, units, 0, {}, {}, {})
    drawn = resample(
        tails, whole, draws, fars=fars, over=over, units=units, resamples=resamples,
        progress=progress,
    )  # fmt: skip
    names, tars, seen = drawn.names, drawn.tars, drawn.observed
    intervals, gains, compared = rate_intervals(
        names, tars, seen, drawn.behind, baseline=baseline, level=level
    )
    at = tuple(map(float, fars))
    shares = np.full(len(at), (1 - level) / 2)
    summaries, differences = {}, {}
    for m, name in enumerate(names):
        ends = percentile_intervals(drawn.thresholds[:, m], shares)
        parts = intervals[name], ends, drawn.behind[m].tolist()
        summaries[name] = tuple(map(BootstrapPoint, at, *parts))
        if name in gains:
            base = names.index(baseline)
            above = np.mean(tars[:, m] > tars[:, base], axis=0).tolist()
            parts = gains[name], above, (seen[m] - seen[base]).tolist()
            differences[name] = tuple(map(BootstrapDifference, at, *parts))
    return Bootstrap(over, units, len(tars), summaries, differences, compared)


def _require_resamples(resamples: int) -> None:
    if resamples < 0 or resamples == 1:
        raise UserError(f"{resamples} resamples were requested, expected at least 2, or 0 for none")
