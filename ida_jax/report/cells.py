"""Cells of the tables of `results.json`, from which every form of table is written.

`results["protocols"]` is {VARIANT: {METHOD: FIGURES}}, rates as fractions of 1. A method's figures:

- "accuracy", "accuracy_deviation"; by InsightFace's rule also "val@far", "val_deviation@far"
  {FAR: VAL}, "val_realised_far", "xnorm"; "tar@far" {FAR: TAR}, "false_accepts" {FAR: count};
  "eer"; "genuine", "impostor", and "ignored_pairs" where pairs were left out
- of a 1:N search: "tpir@fpir", "false_alarms"; "rank" {k: rate}; "mated_probes", "nonmated_probes",
  "gallery"
- of MegaFace: "rank1@distractors" {size: rate}, "faults@distractors" {size: count}; "probes"

A 95 % interval [low, high] stands under "NAME_interval" with the same places of FAR, k or size
("tar_interval@far"), a gain over cosine under "NAME_gain", its interval under "NAME_gain_interval",
the one that holds together with all other methods' under "NAME_gain_simultaneous_interval", and
whether the method may be the best under "NAME_among_best" (`ida_jax.metrics.comparison`). Any key
may be missing: its place shows "–", and a column that no method has is left out.
`results["notes"]` is {VARIANT: sentences}.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS
from ida_jax.report.style import MISSING, far_name, in_order, method_name

GAIN, LOSS, FEW, TIED = "▲", "▼", "†", "≈"


class Cell(NamedTuple):
    """A figure as shown, in percent.

    Attributes:
      text: the value, with the folds' deviation where it has one.
      best: the column's best value.
      interval: its 95 % interval; "" where none is known.
      count: the number that decides the figure (of false accepts, say), where methods differ in it.
      change: GAIN or LOSS where the interval of the gain over cosine excludes 0, else "".
      few: fewer than ten decide the figure.
      tied: not the best value, but chance alone may have put it below.
    """

    text: str
    best: bool = False
    interval: str = ""
    count: str = ""
    change: str = ""
    few: bool = False
    tied: bool = False


class Column(NamedTuple):
    """One figure of all methods.

    Attributes:
      title: "TAR@1e-5 %".
      basis: "134 false accepts" where that number decides all; the counted thing's name where
        they differ; "" where nothing is counted.
      cells: one per method.
      change: one per method: (value − cosine's, the gain's interval or None), in percentage points;
        None for cosine and for missing values.
      simultaneous: the gains' intervals hold all at once.
    """

    title: str
    basis: str
    cells: tuple[Cell, ...]
    change: tuple[tuple[float, tuple[float, float] | None] | None, ...]
    simultaneous: bool = False


class ProtocolTable(NamedTuple):
    """One protocol variant's table.

    Attributes:
      columns: one per figure.
      notes: sentences to stand below: the number of pairs, and what the best method gains.
      remarks: the evaluation's own sentences.
    """

    name: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    remarks: tuple[str, ...]


class _Figure(NamedTuple):
    """One figure of results.json: what its column is called, and the keys beside it."""

    key: str  # "tar@far": its suffix is kept by its intervals
    title: Callable[[str], str]
    counts: str = ""
    counted: str = ""
    ascending: bool = True
    lower_is_better: bool = False


# The order of the columns; of one figure, from the easiest place to the hardest.
_FIGURES = (
    _Figure("accuracy", lambda _: "Accuracy %"),
    _Figure("val@far", lambda far: f"VAL@{far_name(far)} %", ascending=False),
    _Figure("tar@far", lambda far: f"TAR@{far_name(far)} %",
            "false_accepts", "false accepts", ascending=False),
    _Figure("eer", lambda _: "EER %", lower_is_better=True),
    _Figure("tpir@fpir", lambda fpir: f"TPIR@{float(fpir):g} %",
            "false_alarms", "false alarms", ascending=False),
    _Figure("rank", lambda k: f"Rank-{k} %"),
    _Figure("rank1@distractors", lambda size: f"Rank-1@{_size(size)} %",
            "faults@distractors", "failed"),
)  # fmt: skip
# The sentence on the best method's gain is about the hardest place of the first one present.
_HEADLINES = ("tar@far", "tpir@fpir", "rank1@distractors", "accuracy")


def protocol_tables(results: Mapping[str, Any]) -> tuple[ProtocolTable, ...]:
    """The tables of all variants, methods in the method table's order and unknown ones last.

    The best value of a column is marked where its methods show different values: the highest rate,
    the lowest EER; all that show the same figure share the mark. Where fewer than ten false accepts
    (or alarms, or faults) decide every method's figure, none is best and no gain is marked.
    """
    notes = results.get("notes", {})
    return tuple(
        _protocol_table(name, in_order(methods), tuple(notes.get(name, ())))
        for name, methods in results.get("protocols", {}).items()
    )


def ssr_note(results: Mapping[str, Any]) -> str | None:
    """How well the SSR module predicts the searched densities; None without figures."""
    ssr = results.get("ssr", {})
    parts = [
        f"{label} {_number(ssr.get(key)):.3f}"
        for key, label in (("r2", "R²"), ("rank_correlation", "rank correlation"))
        if _number(ssr.get(key)) is not None
    ]
    return f"SSR against the searched density: {', '.join(parts)}." if parts else None


def legend(tables: tuple[ProtocolTable, ...]) -> tuple[tuple[str, str], ...]:
    """The marks in the tables' cells, with their meanings."""
    columns = [column for table in tables for column in table.columns]
    cells = [cell for column in columns for cell in column.cells]
    changes = {cell.change for cell in cells}
    at_once = ", all methods taken together," if any(c.simultaneous for c in columns) else ""
    entries = (
        (GAIN, f"above cosine: the 95 % interval of the difference{at_once} excludes 0",
         GAIN in changes),
        (LOSS, "below cosine, likewise", LOSS in changes),
        (TIED, "may be the best as well: of all methods compared at once, none is above it by more "
         "than chance (95 %)", any(cell.tied for cell in cells)),
        (FEW, f"fewer than {FEWEST_FALSE_ACCEPTS} decide it: conclude nothing from it",
         any(cell.few for cell in cells)),
    )  # fmt: skip
    return tuple((mark, meaning) for mark, meaning, present in entries if present)


def _protocol_table(
    name: str, methods: Mapping[str, Mapping[str, Any]], remarks: tuple[str, ...]
) -> ProtocolTable:
    columns = {
        (figure.key, place): _column(figure, place, methods)
        for figure in _FIGURES
        for place in _places(figure, methods)
    }
    columns = {key: column for key, column in columns.items() if column is not None}
    notes = (_size_note(methods), _gain_note(list(methods), columns))
    return ProtocolTable(
        name,
        tuple(map(method_name, methods)),
        tuple(columns.values()),
        tuple(note for note in notes if note),
        remarks,
    )


def _places(figure: _Figure, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The FARs, ranks or sizes at which some method has the figure, each as its first key."""
    if "@" not in figure.key and figure.key != "rank":
        return [""]
    keys = {float(key): key for m in methods.values() for key in m.get(figure.key, {})}
    return [keys[value] for value in sorted(keys, reverse=not figure.ascending)]


def _column(figure: _Figure, place: str, methods: Mapping[str, Mapping[str, Any]]) -> Column | None:
    """None where no method has the figure."""
    values = {name: _number(_at(m, figure.key, place)) for name, m in methods.items()}
    shown = {name: f"{100 * value:.2f}" for name, value in values.items() if value is not None}
    if not shown:
        return None
    counts = {name: _number(_at(methods[name], figure.counts, place)) for name in shown}
    counts = {name: count for name, count in counts.items() if count is not None}
    firm = len(counts) < len(shown) or max(counts.values()) >= FEWEST_FALSE_ACCEPTS
    shared = len(set(counts.values())) == 1 and len(counts) == len(shown)
    # Compared as shown, so that of two equal figures not one alone is marked.
    best = min if figure.lower_is_better else max
    winner = best(shown.values(), key=float) if firm and len(set(shown.values())) > 1 else None
    base = values.get("cosine")
    changes, cells, simultaneous = [], [], False
    for name, method in methods.items():
        gain = _interval(method, figure.key, "_gain_simultaneous_interval", place)
        simultaneous |= gain is not None
        if gain is None:
            gain = _interval(method, figure.key, "_gain_interval", place)
        compared = name in shown and base is not None and name != "cosine"
        changes.append((100 * (values[name] - base), gain) if compared else None)
        if name not in shown:
            cells.append(Cell(MISSING))
            continue
        ends, count = _interval(method, figure.key, "_interval", place), counts.get(name)
        deviation = _number(_at(method, _beside(figure.key, "_deviation"), place))
        change = "" if gain is None else GAIN if gain[0] > 0 else LOSS if gain[1] < 0 else ""
        cells.append(
            Cell(
                shown[name] + ("" if deviation is None else f" ± {100 * deviation:.2f}"),
                best=shown[name] == winner,
                interval="" if ends is None else f"{ends[0]:.2f}–{ends[1]:.2f}",
                count="" if count is None or shared else f"{count:,.0f}",
                change=change if firm else "",
                few=count is not None and count < FEWEST_FALSE_ACCEPTS,
                tied=winner not in (None, shown[name])
                and _at(method, _beside(figure.key, "_among_best"), place) is True,
            )
        )
    basis = figure.counted if counts else ""
    if shared:
        (count,) = set(counts.values())
        basis = f"{count:,.0f} {basis.removesuffix('s') if count == 1 else basis}"
    return Column(figure.title(place), basis, tuple(cells), tuple(changes), simultaneous)


def _at(method: Mapping[str, Any], key: str, place: str) -> Any:
    """The figure at the place, however the place's number is written."""
    figure = method.get(key)
    if not place or figure is None:
        return figure
    return next((value for k, value in figure.items() if float(k) == float(place)), None)


def _beside(key: str, kind: str) -> str:
    """An entry's key beside a figure's: of "tar@far", "_interval" stands at "tar_interval@far"."""
    name, at, suffix = key.partition("@")
    return f"{name}{kind}{at}{suffix}"


def _interval(
    method: Mapping[str, Any], key: str, kind: str, place: str
) -> tuple[float, float] | None:
    """An interval in percent; None where it is missing or has an unknown end."""
    ends = _at(method, _beside(key, kind), place)
    if ends is None or any(_number(end) is None for end in ends):
        return None
    low, high = ends
    return 100 * low, 100 * high


def _number(value: Any) -> float | None:
    """The value, or None where there is none that can be shown (missing, NaN, infinite)."""
    return float(value) if value is not None and math.isfinite(value) else None


def _size(size: str) -> str:
    """A gallery's size in short: 10, 1k, 1M."""
    number = float(size)
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit and number % (unit / 10) == 0:
            return f"{number / unit:g}{name}"
    return f"{number:,.0f}"


def _size_note(methods: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The numbers of pairs, probes and gallery entries; None where unknown or not common to all."""
    forms = (
        (("genuine", "impostor"), "{:,} genuine and {:,} impostor pairs."),
        (("pairs",), "{:,} pairs."),
        (("mated_probes", "nonmated_probes", "gallery"),
         "{:,} mated and {:,} non-mated probes, a gallery of {:,}."),
        (("probes",), "{:,} probes."),
    )  # fmt: skip
    for keys, form in forms:
        counts = {
            tuple(m[key] for key in keys) for m in methods.values() if all(k in m for k in keys)
        }
        if len(counts) == 1:
            return form.format(*counts.pop())
    return None


def _gain_note(names: Sequence[str], columns: Mapping[tuple[str, str], Column]) -> str | None:
    """The best method's gain over cosine, at the hardest place that ten false accepts decide."""
    for headline in _HEADLINES:
        for (key, _), column in reversed(columns.items()):
            changes = {n: c for n, c in zip(names, column.change, strict=True) if c is not None}
            if key != headline or not changes or column.cells[names.index("cosine")].few:
                continue
            best = max(changes, key=lambda name: changes[name][0])
            gain, interval = changes[best]
            value, base = (
                column.cells[names.index(name)].text.split(" ")[0] for name in (best, "cosine")
            )
            note = (
                f"{column.title.removesuffix(' %')}: {method_name(best)} {value} %, cosine "
                f"{base} %: {gain:+.2f} percentage points"
            )
            if interval is None:
                return note + "."
            together = ", all methods taken together," if column.simultaneous else ""
            ends = f"95 % interval{together} {interval[0]:+.2f} to {interval[1]:+.2f}"
            if interval[0] <= 0 <= interval[1]:
                ends += ", which includes 0: no difference is shown"
            return f"{note} ({ends})."
    return None
