"""How sure a figure is: the paired bootstrap, over identities, over templates or over pairs.

P pairs, I units (identities or templates), G genuine and n impostor pairs, U sides of a pair,
R resamples, F FARs, M methods.

Over units: a resample draws I units with replacement, unit a coming w_a times. A pair within a then
counts w_a times, a pair of a and b w_a · w_b times: a person drawn twice brings two copies of
everything, and copies of one person make no impostor pairs. Each resample is scored by `roc`'s
rule, as if its pairs were written out that often. Pairs that share a person come and go together,
so that their dependence is in the intervals.

Over pairs, where identities are not known: G genuine and n impostor pairs are drawn with
replacement. That takes pairs for independent, so that intervals come out too narrow.

All methods are scored on the same resamples, so that their difference has an interval of its own.
Resamples depend on the seed and on I alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.intervals import (
    Bootstrap,
    BootstrapDifference,
    BootstrapPoint,
    MeanBootstrap,
    percentile_intervals,
)
from ida_jax.metrics.intervals import Interval as Interval
from ida_jax.metrics.resampling import (
    Draw,
    depth_of_pairs,
    draws_of_pairs,
    draws_of_units,
    identity_codes,
    pair_weights,
    unit_weights,
)
from ida_jax.metrics.roc import accepted_impostors
from ida_jax.metrics.score_figures import far_key
from ida_jax.metrics.tails import Tail, Total, pair_list_total, require_units, tail
from ida_jax.metrics.weighted_roc import Ranked, ShortTail, operating_points, rank_tail


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
      seed: of the draws.
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
        {name: rank_tail(each) for name, each in tails.items()},
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
      seed: of the draws; the same seed gives the same intervals.
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
        raise UserError(f"the baseline '{baseline}' is none of the methods {listed}")
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

    return deep_enough(tails, **options)


def deep_enough(
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
      outcomes: {method: float or bool [P]}.
      units: int [P, U], each pair's units.
      count: I.
      over: what the units are, for the result.
      baseline: the method that the others are compared with; no differences if it is not there.
      resamples: R; 0 gives empty results.
      seed: of the draws: the same one gives the resamples of `bootstrap_tails`.
      level: the intervals' confidence, in (0, 1).

    Raises:
      UserError: lengths that differ, units outside 0 … I − 1, 1 resample or fewer than 0, or no
        resample with pairs.
    """
    values = {name: np.asarray(each, np.float64) for name, each in outcomes.items()}
    units = np.asarray(units)
    for name, each in values.items():
        if each.shape != (len(units),):
            raise UserError(
                f"outcomes of shape {list(each.shape)} ({name}) were given for {len(units)} pairs: "
                "expected one each"
            )
    require_units(units, len(units), count=count)
    _require_resamples(resamples)
    if not resamples:
        return MeanBootstrap(over, count, 0, {}, {})
    # The last row gives each resample's weight.
    stacked = np.stack([*values.values(), np.ones(len(units))])
    sums = []
    if np.array_equal(units[:, 0], units[:, -1]):
        by_unit = np.stack([np.bincount(units[:, 0], each, minlength=count) for each in stacked])
        for batch in unit_weights(np.random.default_rng(seed), count):
            sums += list((by_unit @ batch.T).T)
            if len(sums) >= resamples:
                break
    else:
        weights = pair_weights(units.astype(np.int32))
        tables = (t for batch in unit_weights(np.random.default_rng(seed), count) for t in batch)
        for _, table in zip(range(resamples), tables, strict=False):
            sums.append(stacked @ weights(table, 0, None).astype(np.float64))
    found = np.array(sums[:resamples])
    found = found[found[:, -1] > 0]
    if not len(found):
        raise UserError(f"none of {resamples} resamples of {count} {over} has pairs: expected more")
    means = dict(zip(values, (found[:, :-1] / found[:, -1:]).T, strict=True))
    differences = {}
    if baseline in means:
        differences = {
            name: percentile_intervals((each - means[baseline])[:, None], level)[0]
            for name, each in means.items()
            if name != baseline
        }
    methods = {name: percentile_intervals(each[:, None], level)[0] for name, each in means.items()}
    return MeanBootstrap(over, count, len(found), methods, differences)


def tar_intervals(
    bootstrap: Bootstrap, *, fars: Sequence[float] | None = None
) -> dict[str, dict[str, Any]]:
    """{method: entries for its figures}, by the FARs' keys.

    They are `tar_interval@far`, and of a method with a difference `tar_gain@far` and
    `tar_gain_interval@far`.

    Args:
      bootstrap: what `bootstrap_tails` or `bootstrap_tar` gave.
      fars: those to take of the bootstrap's FARs, in this order; all where None.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, points in bootstrap.methods.items():
        kept = _at(points, fars)
        entries[name] = {"tar_interval@far": {far_key(p.far): list(p.tar) for p in kept}}
    for name, gains in bootstrap.differences.items():
        kept = _at(gains, fars)
        entries[name]["tar_gain@far"] = {far_key(d.far): d.gain for d in kept}
        entries[name]["tar_gain_interval@far"] = {far_key(d.far): list(d.tar) for d in kept}
    return entries


def _at(points: Sequence[Any], fars: Sequence[float] | None) -> list[Any]:
    """The points at the FARs, in their order; all where None."""
    by_far = {point.far: point for point in points}
    return list(points) if fars is None else [by_far[float(far)] for far in fars]


def _over_pairs(
    scores_by_method: Mapping[str, ArrayLike], same: np.ndarray, *, seed: int, **options: Any
) -> Bootstrap:
    """The bootstrap over pairs: each pair is a unit, drawn among those of its kind."""
    genuine = np.count_nonzero(same)
    impostors = same.size - genuine
    place = np.where(same, np.cumsum(same), np.cumsum(~same))[:, None] - 1
    highest = max(options["fars"])
    tails = {
        name: tail(scores, same, place, highest_far=highest)
        for name, scores in scores_by_method.items()
    }
    depth = min(impostors, depth_of_pairs(accepted_impostors(highest, impostors)))
    drawn = np.unique(np.concatenate([t.impostor_units[:depth, 0] for t in tails.values()]))
    ranked = {
        name: rank_tail(
            each._replace(
                impostor=each.impostor[:depth],
                impostor_units=np.searchsorted(drawn, each.impostor_units[:depth]),
            )
        )
        for name, each in tails.items()
    }
    draws = draws_of_pairs(
        np.random.default_rng(seed), genuine=genuine, kept=drawn.size, impostors=impostors
    )
    whole = Draw(np.ones(genuine, np.int64), np.ones(drawn.size, np.int64), impostors)
    return _bootstrap(ranked, whole, draws, over="pairs", units=same.size, **options)


def _bootstrap(
    ranked: Mapping[str, Ranked],
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
        return Bootstrap(over, units, 0, {}, {})
    names, methods = tuple(ranked), tuple(ranked.values())
    found = [
        points
        for _, draw in zip(progress(range(resamples)), draws, strict=False)
        if (points := operating_points(methods, draw, fars)) is not None
    ]
    if not found:
        raise UserError(
            f"none of {resamples} resamples of {units} {over} has pairs of both kinds: expected "
            "more of them"
        )
    tars, thresholds = np.moveaxis(np.array(found, np.float64), 2, 0)
    of_all = operating_points(methods, whole, fars)
    summaries, differences = {}, {}
    for m, name in enumerate(names):
        ends = (
            percentile_intervals(tars[:, m], level),
            percentile_intervals(thresholds[:, m], level),
        )
        summaries[name] = tuple(map(BootstrapPoint, map(float, fars), *ends))
        if baseline in ranked and name != baseline:
            base = names.index(baseline)
            gain = tars[:, m] - tars[:, base]
            shares = np.mean(gain > 0, axis=0).tolist()
            observed = (of_all[m].tar - of_all[base].tar).tolist()
            each = map(float, fars), percentile_intervals(gain, level), shares, observed
            differences[name] = tuple(map(BootstrapDifference, *each))
    return Bootstrap(over, units, len(found), summaries, differences)


def _require_resamples(resamples: int) -> None:
    if resamples < 0 or resamples == 1:
        raise UserError(f"{resamples} resamples were asked for, expected at least 2, or 0 for none")
