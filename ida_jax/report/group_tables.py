"""FAR and TAR by group: tables of `results.json`, and their figure.

A method's figures hold `groups`, `far_ratio` and, where asked for, `group_thresholds`
(`ida_jax.metrics.group_rates`).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.errors import printable
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS
from ida_jax.report.page import html_table
from ida_jax.report.style import (
    MISSING,
    drawn_text,
    far_name,
    house_style,
    in_order,
    method_name,
    method_styles,
    new_panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD = ("method", "group", "impostor pairs", "FAR", "95 %", "false accepts", "TAR %", "95 %")
# Of more groups a table shows the first ones and the last.
_MOST_ROWS, _FIRST_ROWS = 8, 3
_MOST_DRAWN = 50
_Figures = Mapping[str, Mapping[str, Any]]


class GroupTable(NamedTuple):
    """One FAR's table.

    Attributes:
      title: what is shown.
      rows: cells of text by `HEAD`; the first is empty where the row is of the method above.
    """

    title: str
    rows: list[list[str]]


def group_tables(methods: _Figures) -> list[GroupTable]:
    """A table for each FAR of {a method's name: its figures}; none without groups."""
    grouped = {name: figures for name, figures in methods.items() if figures.get("groups")}
    return [
        GroupTable(
            f"Groups at the one threshold of FAR {far_name(far)}",
            [row for name, figures in grouped.items() for row in _rows(name, figures, far)],
        )
        for far in _fars(grouped)
    ]


def protocol_group_tables(results: Mapping[str, Any]) -> dict[str, list[GroupTable]]:
    """{variant: its tables} of `results.json`, of the variants that have groups."""
    tables = {
        variant: group_tables({method_name(m): of for m, of in in_order(methods).items()})
        for variant, methods in results.get("protocols", {}).items()
    }
    return {variant: of for variant, of in tables.items() if of}


def group_text(results: Mapping[str, Any]) -> str:
    """All variants' tables for a terminal; "" without groups."""
    parts = []
    for variant, tables in protocol_group_tables(results).items():
        parts += [f"{variant}: {text_of(table)}" for table in tables]
    return "\n\n".join(parts)


def text_of(table: GroupTable) -> str:
    """A table for a terminal."""
    return printable_lines(f"{table.title}\n{aligned_text(HEAD, table.rows, left=2)}")


def group_markdown(results: Mapping[str, Any]) -> list[str]:
    """All variants' tables as GitHub Markdown."""
    parts = []
    for variant, tables in protocol_group_tables(results).items():
        for table in tables:
            rows = [list(HEAD), ["---", "---", *["---:"] * (len(HEAD) - 2)], *table.rows]
            lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
            parts.append("\n".join([f"### {variant}: {table.title}", "", *lines]))
    return parts


def group_section(results: Mapping[str, Any]) -> str:
    """All variants' tables as HTML; "" without groups."""
    cards = []
    head = "".join(f'<th scope="col">{title}</th>' for title in HEAD)
    for variant, tables in protocol_group_tables(results).items():
        for table in tables:
            rows = [
                (html.escape(row[0]), "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:]))
                for row in table.rows
            ]
            title = html.escape(f"{variant}: {table.title}")
            cards.append(
                f'<section class="card"><h3>{title}</h3>{html_table(head, rows)}</section>'
            )
    if not cards:
        return ""
    reading = (
        "The share of a group’s impostor pairs that are accepted, and of its genuine pairs, when "
        "all pairs share one threshold. The ratio is of the group with the highest FAR to that "
        "with the lowest, and its interval allows for their being chosen among all groups; a "
        "group’s own intervals hold for it alone. * marks fewer than "
        f"{FEWEST_FALSE_ACCEPTS} false accepts, from which nothing follows. “A threshold a group” "
        "is the TAR of all genuine pairs when each group has its own threshold at this FAR, and "
        "what it is above that at one threshold."
    )
    return "\n".join(["<h2>Groups</h2>", *cards, f'<p class="soft">{reading}</p>'])


@house_style
def group_figure(methods: _Figures) -> Figure | None:
    """Each group's FAR at the one threshold, a panel for each overall FAR; bars are intervals.

    FARs at which no group has ten false accepts are left out; None where none is left.

    Args:
      methods: {a method's key: its figures}.
    """
    grouped = {name: of for name, of in in_order(methods).items() if of.get("groups")}
    firm = [
        far
        for far in _fars(grouped)
        if any(
            group["false_accepts"][far] >= FEWEST_FALSE_ACCEPTS
            for of in grouped.values()
            for group in of["groups"].values()
        )
    ]
    if not firm:
        return None
    figure, axes = new_panels(len(firm), height=3.4, above=0.9)
    for axis, far in zip(axes, firm, strict=True):
        _draw(axis, grouped, far)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False)
    figure.set_label(
        "Each group's false accept rate when all share the threshold of the overall rate (dotted); "
        "equal heights are fair. Bars are 95 % intervals over people, of each group by itself: "
        "whether groups differ, the ratio's interval says. One that ends at a thirtieth of its "
        "rate goes on below."
    )
    return figure


def _draw(axis: Axes, methods: _Figures, far: str) -> None:
    names = list(next(iter(methods.values()))["groups"])[:_MOST_DRAWN]
    width = 0.6 / max(len(methods), 1)
    for i, (method, style) in enumerate(method_styles(methods).items()):
        groups = methods[method]["groups"]
        places, heights = [], []
        for at, name in enumerate(names):
            rate = groups[name]["realised_far"][far]
            place = at + (i - (len(methods) - 1) / 2) * width
            places.append(place)
            heights.append(rate if rate else math.nan)  # 0 has no place on the axis
            ends = groups[name].get("realised_far_interval", {}).get(far)
            if rate and ends is not None:
                low = max(ends[0], rate / 30)
                axis.plot([place] * 2, [low, ends[1]], color=style["color"], linewidth=1.2)
        shown = {"marker": style["marker"], "color": style["color"], "markersize": 5}
        label = drawn_text(method_name(method))
        axis.plot(places, heights, linestyle="none", markerfacecolor="white", label=label, **shown)
    axis.axhline(float(far), color="#888888", linestyle=":", linewidth=1.4)
    axis.set_yscale("log")
    crowded = sum(map(len, names)) > 30
    axis.set_xticks(
        range(len(names)), [*map(drawn_text, names)], rotation=60 if crowded else 0,
        ha="right" if crowded else "center", fontsize=8 if crowded else None,
    )  # fmt: skip
    axis.set_title(f"FAR by group, threshold of {far_name(far)}")


def _rows(method: str, figures: Mapping[str, Any], far: str) -> list[list[str]]:
    groups = figures["groups"]
    names = list(groups)
    left_out = []
    if len(names) > _MOST_ROWS:
        names, left_out = [*names[:_FIRST_ROWS], names[-1]], names[_FIRST_ROWS:-1]
    rows = [[name, *_cells(groups[name], far)] for name in names]
    if left_out:
        rows.insert(-1, [f"({len(left_out)} more in results.json)", *[""] * 6])
    if ratio := figures.get("far_ratio", {}).get(far):
        value = "∞" if ratio["ratio"] is None else f"{ratio['ratio']:.2f}"
        ends = _interval(ratio.get("interval"), "{:.2f}")
        rows.append([f"{ratio['highest']} over {ratio['lowest']}", "", value, ends, "", "", ""])
    if held := figures.get("group_thresholds", {}).get(far):
        tar, gain = f"{100 * held['tar']:.2f}", f"{100 * held['tar_gain']:+.2f}"
        ends = [_interval(held.get(key), form, 100) for key, form in _HELD]
        rows.append(["one threshold per group", "", far_name(far), "", "", tar, ends[0]])
        rows.append(["  above one threshold", "", "", "", "", gain, ends[1]])
    return [[method if i == 0 else "", *row] for i, row in enumerate(rows)]


_HELD = (("tar_interval", "{:.2f}"), ("tar_gain_interval", "{:+.2f}"))


def _cells(group: Mapping[str, Any], far: str) -> list[str]:
    rate, tar, count = (group[key][far] for key in ("realised_far", "tar@far", "false_accepts"))
    few = "*" if count < FEWEST_FALSE_ACCEPTS else ""
    return [
        f"{group['impostor']:,}",
        MISSING if rate is None else f"{rate:.2e}",
        _interval(group.get("realised_far_interval", {}).get(far), "{:.2e}"),
        MISSING if rate is None else f"{count:,}{few}",
        MISSING if tar is None else f"{100 * tar:.2f}",
        _interval(group.get("tar_interval@far", {}).get(far), "{:.2f}", 100),
    ]


def _interval(ends: Sequence[float | None] | None, form: str, factor: float = 1) -> str:
    if ends is None:
        return MISSING
    return " … ".join(
        form.format(factor * end) if end is not None and math.isfinite(end) else "∞" for end in ends
    )


def _fars(methods: _Figures) -> list[str]:
    """The FARs' keys, the highest first."""
    keys = {
        float(far): far
        for figures in methods.values()
        for group in figures["groups"].values()
        for far in group["false_accepts"]
    }
    return [keys[far] for far in sorted(keys, reverse=True)]


def aligned_text(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table in columns, the first `left` of them to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, *rows):
        aligned = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def printable_lines(text: str) -> str:
    """The text, each line as a terminal may print it."""
    return "\n".join(map(printable, text.split("\n")))
