"""The results of `ida-jax evaluate`, as text for the terminal and as a figure.

`results` is what its JSON holds: `methods` by role ("scores", "baseline"), each with `name` and the
figures of `ida_jax.metrics.evaluation`; `difference`, `bootstrap` and `calibration` where they
were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, far_key
from ida_jax.metrics.interval_figures import note_of_few_units
from ida_jax.report.group_tables import aligned_text, group_tables, printable_lines, text_of
from ida_jax.report.rate_plots import draw_det
from ida_jax.report.style import (
    MISSING,
    drawn_text,
    far_name,
    house_style,
    method_styles,
    new_figure,
)
from ida_jax.tables.score_origin import ScoreOrigin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_GROUPS = 20


def score_text(results: Mapping[str, Any]) -> str:
    """All tables and notes, for a terminal."""
    parts = [
        f"{results['genuine']:,} genuine and {results['impostor']:,} impostor pairs",
        _rates(results),
        _qualities(results),
    ]
    if "difference" in results:
        parts.append(_differences(results))
    if "groups" in results["methods"]["scores"]:
        parts += _groups(results)
    text = "\n\n".join([*parts, "\n".join(_notes(results))])
    return printable_lines(text)


def _rates(results: Mapping[str, Any]) -> str:
    percent = f"{100 * results['level']:g} %"
    head = ["FAR", "method", "TAR %", percent, "threshold", percent, "false accepts"]
    rows = [
        [
            far_name(key),
            figures["name"],
            f"{100 * figures['tar@far'][key]:.2f}",
            _interval(figures.get("tar_interval@far", {}).get(key), 100, ".2f"),
            f"{figures['threshold@far'][key]:.5f}",
            _interval(figures["threshold_interval@far"][key], 1, ".5f"),
            _count(figures["false_accepts"][key]),
        ]
        for key in map(far_key, results["fars"])
        for figures in results["methods"].values()
    ]
    return aligned_text(head, rows)


def _qualities(results: Mapping[str, Any]) -> str:
    rows = []
    for role, figures in results["methods"].items():
        fitted = results.get("calibration") if role == "scores" else None
        bits = [figures["min_cllr"], figures["cllr"], *([fitted["cllr"]] if fitted else [])]
        row = [figures["name"], f"{100 * figures['eer']:.3f}", *(f"{cost:.5f}" for cost in bits)]
        rows.append(row if fitted else [*row, MISSING])
    return aligned_text(["method", "EER %", "min-Cllr", "Cllr as given", "Cllr calibrated"], rows)


def _differences(results: Mapping[str, Any]) -> str:
    difference, methods = results["difference"], results["methods"]
    rows = [
        [
            far_name(key),
            f"{100 * gain:+.2f}",
            _interval(difference["tar_interval@far"][key], 100, "+.2f"),
            f"{100 * difference['share_above_0'][key]:.1f} %",
        ]
        for key, gain in difference["tar@far"].items()
    ]
    title = (
        f"TAR of {methods['scores']['name']} minus {methods['baseline']['name']}, percentage points"
    )
    percent = f"{100 * results['level']:g} %"
    return f"{title}\n{aligned_text(['FAR', 'gain', percent, 'resamples above 0'], rows)}"


def _groups(results: Mapping[str, Any]) -> list[str]:
    methods = {figures["name"]: figures for figures in results["methods"].values()}
    lines = []
    for table, far in zip(group_tables(methods), results["fars"], strict=True):
        lines.append(text_of(table))
        for name, method in methods.items():
            fars = {n: g["realised_far"][far_key(far)] or 0.0 for n, g in method["groups"].items()}
            worst = max(fars, key=fars.get)
            if fars[worst]:
                ratio = fars[worst] / method["realised_far"][far_key(far)]
                lines[-1] += f"\n{name}: group {worst} has {ratio:.1f} times the FAR of all"
    return lines


def _notes(results: Mapping[str, Any]) -> list[str]:
    methods = results["methods"].values()
    notes = [results["ignored_note"]] if "ignored_note" in results else []
    notes += [
        f"{figures['name']}: {figures['nan']:,} scores are NaN: never a match"
        for figures in methods
        if figures["nan"]
    ]
    few = [far for far in results["fars"] if far * results["impostor"] < 1]
    if few:
        notes.append(
            f"FAR {', '.join(map(far_name, few))} is below 1/{results['impostor']:,}: the "
            "threshold is the highest impostor score, and these pairs cannot measure the rate"
        )
    if any(count < FEWEST_FALSE_ACCEPTS for m in methods for count in _counts(m)):
        notes.append(
            f"*: fewer than {FEWEST_FALSE_ACCEPTS} false accepts; conclude nothing from it"
        )
    if bootstrap := results.get("bootstrap"):
        counts = f"{bootstrap['resamples']:,} resamples over {bootstrap['units']:,}"
        notes.append(f"Intervals: {counts} {bootstrap['over']}")
        if bootstrap["over"] == "pairs":
            notes[-1] += ", as if these were independent, so too narrow; give --identities"
        notes += note_of_few_units(results["methods"], "tar@far", over=bootstrap["over"])
    else:
        notes.append("Threshold intervals: order statistics, as if pairs were independent")
    notes += results.get("group_notes", [])
    notes.append(
        "Cllr (bits) as given takes the scores for natural-log likelihood ratios, which they are "
        "only once calibrated"
    )
    if fitted := results.get("calibration"):
        notes.append(
            f"Calibration ({fitted['kind']}) in {fitted['file']}; its Cllr is on the pairs that it "
            "was fitted on"
        )
        made = fitted.get("origin")
        notes.append(
            f"Made of scores by {ScoreOrigin.from_json(made).described()}: rescore refuses it for "
            "others"
            if made
            else "Made of scores that do not say what made them: rescore cannot check it"
        )
    return notes


def _counts(figures: Mapping[str, Any]) -> list[int]:
    groups = figures.get("groups", {}).values()
    return [
        *figures["false_accepts"].values(),
        *(count for g in groups if g["impostor"] for count in g["false_accepts"].values()),
    ]


@house_style
def score_figure(results: Mapping[str, Any]) -> Figure:
    """DET curves on normal-deviate axes; beside them, where there are groups, their realised FARs.

    Rates of 0 and 1 have no place on the axes and are left out.
    """
    grouped = "groups" in results["methods"]["scores"]
    figure, axes = new_figure(columns=1 + grouped, width=10 if grouped else 6, height=4.6)
    named = {figures["name"]: figures for figures in results["methods"].values()}
    styles = method_styles(named)
    curves = {name: f["curve"] for name, f in named.items()}
    draw_det(axes[0], {name: ((c["far"], c["tar"]), styles[name]) for name, c in curves.items()})
    if grouped:
        counts = results["methods"]["scores"]["false_accepts"]
        firm = [f for f in results["fars"] if counts[far_key(f)] >= FEWEST_FALSE_ACCEPTS]
        _draw_groups(axes[1], named, styles, (firm or results["fars"][:1])[-1])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(handles), frameon=False)
    figure.set_label(
        "Left: the share of genuine pairs rejected against the share of impostor pairs accepted; "
        "lower is better. Right: each group's false accept rate at one threshold for all; equal "
        "heights are fair."
        if grouped
        else "The share of genuine pairs rejected against the share of impostor pairs accepted; "
        "lower is better."
    )
    return figure


def _draw_groups(
    axis: Axes, named: Mapping[str, Any], styles: Mapping[str, Mapping[str, Any]], far: float
) -> None:
    key = far_key(far)
    groups = list(next(iter(named.values()))["groups"])[:_MOST_GROUPS]
    for shift, (name, figures) in zip((-0.12, 0.12), named.items(), strict=False):
        fars = [figures["groups"][group]["realised_far"][key] for group in groups]
        heights = [math.nan if rate is None else rate for rate in fars]
        places = [place + (shift if len(named) > 1 else 0) for place in range(len(groups))]
        marker, color = styles[name]["marker"], styles[name]["color"]
        axis.plot(places, heights, marker, color=color, label=drawn_text(name))
    axis.axhline(far, color="#888888", linestyle=":", linewidth=1.4)
    axis.set_xticks(
        range(len(groups)), [*map(drawn_text, groups)], rotation=45 if len(groups) > 6 else 0
    )
    axis.set_ylim(0, None)
    axis.set_title(f"Realised FAR by group, threshold of {far_name(far)}")


def _interval(ends: Sequence[float] | None, factor: float, form: str) -> str:
    if ends is None:
        return MISSING
    return " … ".join(f"{factor * end:{form}}" for end in ends)


def _count(count: int) -> str:
    return f"{count:,}" + ("*" if count < FEWEST_FALSE_ACCEPTS else "")
