"""FAR and TAR in each group of pairs, at one threshold for all or at one threshold per group.

At the one threshold of an overall FAR the groups' own FARs differ: the ratio of the highest to the
lowest says by how much. A threshold a group holds the FAR in each; the share of all genuine pairs
that these accept, beside the share at one threshold, is what it costs. `roc`'s rule holds in each
group, and NaN is never a match.

Intervals are by the bootstrap over units of `ida_jax.metrics.bootstrap`, on the same resamples: in
each the thresholds are found anew. They are plain percentile intervals, not widened where few
people have errors (few_units.py). A group's hold for that group alone: of 20 groups that are all
alike some interval misses two times in three. Whether groups differ is for the ratio to say. Its
two groups are those of the pairs as they are, and of many the highest and the lowest are so by
chance too: its interval is at the level 1 − α/m, m the number of pairs of groups (Bonferroni),
where the intervals of all m ratios hold at once with the chance 1 − α, and so the chosen one's.
With more than α·R/2 pairs of groups it is the range of all R resamples, and too narrow.

P pairs, G genuine and n impostor pairs, Q groups, F FARs, I units, R resamples, U sides.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, far_key
from ida_jax.metrics.groups import REST, PairGroups
from ida_jax.metrics.resampling import (
    Draw,
    Ranked,
    ShortTail,
    Total,
    draws_of_units,
    highest_places,
    pair_weights,
    split_tail,
    thresholds_at_ranks,
    without_nan,
)
from ida_jax.metrics.roc import SplitScores, accepted_impostors, tar_at_far

_SPARE = 50_000


class Sides(NamedTuple):
    """The units of scored pairs, which the bootstrap draws.

    Attributes:
      genuine: int32 [G, U], the units of each genuine pair's sides.
      impostor: the units int [m, U] of the impostor pairs at m positions.
      count: I.
      total: the impostor pairs' weight in each resample, as in `bootstrap_tails`.
    """

    genuine: np.ndarray
    impostor: Callable[[np.ndarray], np.ndarray]
    count: int
    total: Total


class _Measured(NamedTuple):
    """One method's figures in one resample, by weight; float64.

    The last row of [Q + 1] is of pairs without a group.

    Attributes:
      genuine: [Q + 1], the weight of genuine pairs.
      impostor: [Q + 1].
      right: [Q + 1, F], of genuine pairs accepted at the overall threshold.
      wrong: [Q, F], of impostor pairs accepted at it.
      threshold: [Q + 1, F], each group's own; where a group has no impostor pairs, and in the last
        row, the overall one.
      own_right: [Q + 1, F], of genuine pairs accepted at their group's own.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    threshold: np.ndarray
    own_right: np.ndarray


class _Method(NamedTuple):
    """One method's scores in order: all impostors' tail, and each group's pairs.

    Attributes:
      all: all pairs.
      groups: Q + 1 of them, the last those without a group, whose impostors are left out.
      sizes: [Q + 1], the number of impostor pairs of each.
    """

    all: Ranked
    groups: list[Ranked]
    sizes: np.ndarray


def group_rates(
    scores: Mapping[str, SplitScores],
    groups: PairGroups,
    sides: Sides | None,
    *,
    fars: Sequence[float],
    own_thresholds: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, dict[str, Any]]:
    """{method: entries for its figures}, by the groups' names and the FARs' keys.

    - `groups`: {name: `genuine`, `impostor`, `tar@far`, `realised_far` and `false_accepts` at the
      threshold of each overall FAR, and with resamples `tar_interval@far` and
      `realised_far_interval`}. A group without impostor (genuine) pairs has no FAR (TAR): None.
    - `far_ratio`: {FAR: `ratio` of the highest to the lowest group's FAR, their names `highest` and
      `lowest`, with resamples the `interval`, which allows for their being chosen}; a FAR at
      which no two groups can be compared is left out, and a ratio to a FAR of 0 is None.
    - `group_thresholds`, if asked for: {FAR: `threshold` {name: its own, and `no group`: the
      overall one, for all other pairs}, `tar` of all genuine pairs at these, `tar_gain` over one
      threshold, and with resamples `tar_interval` and `tar_gain_interval`}.

    Args:
      scores: {method: scores in the order of the groups' codes}, unsorted.
      groups: the pairs' groups, with `total` where there are `sides`.
      sides: what is resampled; no intervals where None.
      fars: [F] rates in (0, 1].
      own_thresholds: whether one threshold per group is evaluated too.
      resamples: R; 0 gives no intervals.
      seed: that of the other figures' bootstrap gives the same resamples.
      level: the intervals' confidence, in (0, 1).
      progress: wraps the resamples' iterator, to show progress.

    Raises:
      UserError: no pairs of a kind, or a FAR outside (0, 1].
    """
    if not fars:
        return {name: {} for name in scores}
    entries = {}
    for name, split in scores.items():
        measure = partial(
            _measured_and_drawn, split, groups, sides, fars,
            resamples=resamples if sides is not None else 0, seed=seed, progress=progress,
        )  # fmt: skip
        try:
            whole, drawn = measure(deep=False)
        except ShortTail:
            whole, drawn = measure(deep=True)
        entries[name] = _entries(whole, drawn, groups, fars, own_thresholds, level)
    return entries


def few_errors(figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A sentence for each FAR at which fewer than 10 false accepts decide a group's figure."""
    least: dict[str, dict[str, int]] = {}
    for method in figures.values():
        for name, group in method.get("groups", {}).items():
            for far, count in group["false_accepts"].items():
                if group["impostor"] and count < FEWEST_FALSE_ACCEPTS:
                    of_far = least.setdefault(far, {})
                    of_far[name] = min(count, of_far.get(name, count))
    notes = []
    for far, counts in least.items():
        shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:6])
        more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
        notes.append(
            f"at FAR {far} fewer than {FEWEST_FALSE_ACCEPTS} false accepts are of {shown}{more}: "
            "their FARs, ratios to them and thresholds of their own say little"
        )
    return tuple(notes)


def _measured_and_drawn(
    split: SplitScores,
    groups: PairGroups,
    sides: Sides | None,
    fars: Sequence[float],
    *,
    resamples: int,
    seed: int,
    progress: Callable[[Iterable], Iterable],
    deep: bool,
) -> tuple[_Measured, list[_Measured]]:
    """The figures of the pairs as they are, and of each resample that has pairs of both kinds."""
    method = _prepared(split, groups, sides, max(fars), deep=deep)
    ones = np.ones(1 if sides is None else sides.count, np.int32)
    whole = _measured(method, Draw(ones, ones, split.impostor.size), method.sizes, fars)
    if not resamples:
        return whole, []
    totals: list[np.ndarray] = []

    def total(weights: np.ndarray) -> np.ndarray:
        # The groups' totals of a batch of resamples, beside the whole's, in the same order.
        by_group, of_all = groups.total(weights), sides.total(weights)
        totals.extend(np.rint(np.vstack([by_group, of_all - by_group.sum(axis=0)])).T)
        return of_all

    draws = draws_of_units(np.random.default_rng(seed), sides.count, total)
    drawn = []
    for number, draw in zip(progress(range(resamples)), draws, strict=False):
        if draw.impostors and (measured := _measured(method, draw, totals[number], fars)):
            drawn.append(measured)
    return whole, drawn


def _prepared(
    split: SplitScores, groups: PairGroups, sides: Sides | None, highest_far: float, *, deep: bool
) -> _Method:
    if sides is None:  # one unit, drawn once
        of_genuine = np.zeros((split.genuine.size, 1), np.int32)
        sides = Sides(of_genuine, lambda at: np.zeros((len(at), 1), np.int32), 1, lambda w: w)
    whole = split_tail(
        *split, genuine_units=sides.genuine, impostor_units=sides.impostor,
        highest_far=1.0 if deep else highest_far,
    )  # fmt: skip
    dtype = np.result_type(*split)
    dtype = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)
    genuine = without_nan(np.asarray(split.genuine)).astype(dtype, copy=False)
    threshold = tar_at_far(*split, [highest_far])[0].threshold
    ranked, sizes = [], []
    for code in (*range(len(groups.names)), -1):
        mine = np.flatnonzero(groups.genuine == code)
        mine = mine[np.argsort(genuine[mine], kind="stable")]
        places = np.flatnonzero(groups.impostor == code) if code >= 0 else np.empty(0, np.int64)
        size = places.size if code >= 0 else int(np.count_nonzero(groups.impostor == code))
        of_group = np.asarray(split.impostor)[places]
        likely = max(np.count_nonzero(of_group > threshold), highest_far * places.size)
        depth = places.size if deep else min(places.size, 2 * int(likely) + _SPARE)
        kept = highest_places(of_group, depth) if depth else np.empty(0, np.int64)
        ranked.append(
            Ranked(
                genuine[mine],
                pair_weights(sides.genuine[mine].astype(np.int32)),
                without_nan(of_group[kept]).astype(dtype, copy=False),
                pair_weights(np.asarray(sides.impostor(places[kept])).astype(np.int32)),
            )
        )
        sizes.append(size)
    order = np.argsort(whole.genuine)
    of_all = Ranked(
        whole.genuine[order].astype(dtype, copy=False),
        pair_weights(whole.genuine_units[order]),
        whole.impostor.astype(dtype, copy=False),
        pair_weights(whole.impostor_units),
    )
    return _Method(of_all, ranked, np.array(sizes, np.float64))


def _measured(
    method: _Method, draw: Draw, totals: np.ndarray, fars: Sequence[float]
) -> _Measured | None:
    """The figures of one resample; None without genuine pairs."""
    ranks = np.array([accepted_impostors(far, draw.impostors) for far in fars])
    overall = thresholds_at_ranks(method.all, draw, ranks)
    shape = len(method.groups), len(fars)
    genuine, right, wrong, own_right = (np.zeros(s) for s in (shape[0], shape, shape, shape))
    threshold = np.tile(overall.astype(np.float64), (shape[0], 1))
    for q, (group, size, total) in enumerate(zip(method.groups, method.sizes, totals, strict=True)):
        weights = group.genuine_weights(draw.genuine, 0, None)
        running = np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])
        genuine[q] = running[-1]
        own = overall
        if q < shape[0] - 1 and total:
            wrong[q] = _accepted(group, draw, overall, int(size))
            own_ranks = np.array([accepted_impostors(far, int(total)) for far in fars])
            own = thresholds_at_ranks(group, draw._replace(impostors=int(total)), own_ranks)
            threshold[q] = own
        for accepted, at in ((right, overall), (own_right, own)):
            accepted[q] = running[-1] - running[np.searchsorted(group.genuine, at, side="right")]
    if not genuine.sum():
        return None
    return _Measured(genuine, totals, right, wrong[:-1], threshold, own_right)


def _accepted(group: Ranked, draw: Draw, thresholds: np.ndarray, size: int) -> np.ndarray:
    """[F]: the weight of a group's impostors strictly above each threshold."""
    places = np.searchsorted(-group.impostor, -thresholds, side="left")
    deepest = int(places.max(initial=0))
    if deepest == group.impostor.size < size:
        raise ShortTail(f"{deepest:,} impostors of a group were kept, and more are accepted")
    weights = group.impostor_weights(draw.impostor, 0, deepest)
    return np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])[places]


def _entries(
    whole: _Measured,
    drawn: list[_Measured],
    groups: PairGroups,
    fars: Sequence[float],
    own_thresholds: bool,
    level: float,
) -> dict[str, Any]:
    """`group_rates`' entries of one method."""
    keys = [far_key(far) for far in fars]
    resampled = None
    if drawn:
        resampled = _Measured(*(np.stack(values) for values in zip(*drawn, strict=True)))

    def interval(samples: np.ndarray, statements: int = 1) -> list[float] | None:
        return _interval(samples, 1 - (1 - level) / statements)

    entries: dict[str, Any] = {
        "groups": {
            name: _group_entry(whole, resampled, q, keys, interval)
            for q, name in enumerate(groups.names)
        },
        "far_ratio": {},
    }
    for f, key in enumerate(keys):
        if ratio := _ratio_entry(whole, resampled, f, groups, interval):
            entries["far_ratio"][key] = ratio
    if own_thresholds:
        entries["group_thresholds"] = {
            key: _thresholds_entry(whole, resampled, f, groups.names, interval)
            for f, key in enumerate(keys)
        }
    return entries


def _group_entry(
    whole: _Measured,
    resampled: _Measured | None,
    q: int,
    keys: Sequence[str],
    interval: Callable[[np.ndarray], list[float] | None],
) -> dict[str, Any]:
    size, genuine = int(whole.impostor[q]), int(whole.genuine[q])
    right, wrong = whole.right[q].tolist(), whole.wrong[q].tolist()
    figures: dict[str, Any] = {
        "genuine": genuine,
        "impostor": size,
        "tar@far": {k: n / genuine if genuine else None for k, n in zip(keys, right, strict=True)},
        "realised_far": {k: n / size if size else None for k, n in zip(keys, wrong, strict=True)},
        "false_accepts": {k: int(n) for k, n in zip(keys, wrong, strict=True)},
    }
    if resampled is not None:
        tars = _rates(resampled.right[:, q], resampled.genuine[:, q])
        fars = _rates(resampled.wrong[:, q], resampled.impostor[:, q])
        for name, rates in (("tar_interval@far", tars), ("realised_far_interval", fars)):
            figures[name] = {k: interval(rates[:, f]) for f, k in enumerate(keys)}
    return figures


def _ratio_entry(
    whole: _Measured,
    resampled: _Measured | None,
    f: int,
    groups: PairGroups,
    interval: Callable[[np.ndarray, int], list[float] | None],
) -> dict[str, Any] | None:
    compared = [q for q in range(groups.compared) if whole.impostor[q]]
    if len(compared) < 2 or not whole.wrong[compared, f].any():
        return None
    rates = {q: whole.wrong[q, f] / whole.impostor[q] for q in compared}
    high, low = max(rates, key=rates.get), min(rates, key=rates.get)
    ratio: dict[str, Any] = {
        "ratio": float(rates[high] / rates[low]) if rates[low] else None,
        "highest": groups.names[high],
        "lowest": groups.names[low],
    }
    if resampled is not None and rates[low]:
        of_high, of_low = (
            _rates(resampled.wrong[:, q, [f]], resampled.impostor[:, q])[:, 0] for q in (high, low)
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # a FAR of 0 in a resample
            ratio["interval"] = interval(of_high / of_low, math.comb(len(compared), 2))
    return ratio


def _thresholds_entry(
    whole: _Measured,
    resampled: _Measured | None,
    f: int,
    names: Sequence[str],
    interval: Callable[[np.ndarray], list[float] | None],
) -> dict[str, Any]:
    def tars(of: _Measured) -> tuple[np.ndarray, np.ndarray]:
        """TAR at the groups' thresholds, and what it is above TAR at one."""
        total = of.genuine.sum(axis=-1)
        own = of.own_right[..., f].sum(axis=-1) / total
        return own, own - of.right[..., f].sum(axis=-1) / total

    tar, gain = tars(whole)
    entry: dict[str, Any] = {
        "threshold": dict(zip((*names, REST), whole.threshold[:, f].tolist(), strict=True)),
        "tar": float(tar),
        "tar_gain": float(gain),
    }
    if resampled is not None:
        drawn = tars(resampled)
        entry["tar_interval"], entry["tar_gain_interval"] = map(interval, drawn)
    return entry


def _rates(accepted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Accepted [R, F] by the weight [R] of all; NaN where that is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return accepted / weight[:, None]


def _interval(samples: np.ndarray, level: float) -> list[float] | None:
    """The percentile interval of samples [R], NaN left out; None where fewer than 2 are known."""
    known = samples[~np.isnan(samples)]
    if known.size < 2:
        return None
    tail = (1 - level) / 2
    return np.quantile(known, [tail, 1 - tail], method="nearest").tolist()
