"""Figures of rates: ROC, TPIR and DET curves, sweeps of the settings, and gallery sizes.

n impostor scores, or searches for people who are not enrolled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import Band
from ida_jax.report.style import (
    drawn_text,
    far_name,
    house_style,
    in_order,
    method_name,
    method_styles,
    new_figure,
)
from ida_jax.rescoring.method_table import BASELINE, HEADLINE, METHODS, is_dao

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SWEPT = {"k": "support set's size k", "tau": "temperature τ", "anchors": "anchors |A|"}
_DET_LEVELS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
_FINE_DET_LEVELS = (1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
_Figures = Mapping[str, Mapping[str, Any]]


@house_style
def roc_figure(curves: Mapping[str, Band], *, figures: _Figures | None = None) -> Figure:
    """ROC curves by method; beside them, where cosine is among them, their gains over cosine.

    The bands of cosine and of the best IDA are drawn, those of others would only hide them. Left of
    FAR 10/n fewer than ten false accepts decide: that part is shaded, and the axes are fitted to
    the rest.

    Args:
      curves: each method's curve. Ends of a band that are NaN are not drawn.
      figures: the methods' figures (`ida_jax.report.cells`), for n ("impostor") and the intervals
        of the gains ("tar_gain_interval@far").
    """
    return _rate_figure(
        curves,
        figures or {},
        keys=("impostor", "tar_gain_interval@far"),
        names=("True accept rate", "false accept rate (FAR)", "false accepts"),
        reading="The share of genuine pairs accepted (higher is better) when that share of "
        "impostor pairs is let through; strict settings are on the left.",
    )


@house_style
def tpir_figure(curves: Mapping[str, Band], *, figures: _Figures | None = None) -> Figure:
    """TPIR against FPIR by method, of an open-set search; drawn as `roc_figure` draws.

    Args:
      curves: each method's curve, its `far` an FPIR and its `tar` a TPIR.
      figures: the methods' figures, for n ("nonmated_probes") and "tpir_gain_interval@fpir".
    """
    title = "True positive identification rate (TPIR)"
    rate = "false positive identification rate (FPIR)"
    return _rate_figure(
        curves,
        figures or {},
        keys=("nonmated_probes", "tpir_gain_interval@fpir"),
        names=(title, rate, "false alarms"),
        reading="The share of searches whose person scores above the threshold, at whatever rank "
        "(higher is better), when that share of searches for absent people raises an alarm.",
    )


def _rate_figure(
    curves: Mapping[str, Band],
    figures: _Figures,
    *,
    keys: tuple[str, str],
    names: tuple[str, str, str],
    reading: str,
) -> Figure:
    if not curves:
        raise UserError("no curves were given, expected at least one to draw")
    (count_key, gain_key), (title, rate, counted) = keys, names
    # A rate of 0 has no place on a logarithmic axis.
    curves = {
        method: Band(*(values[curve.far > 0] for values in curve))
        for method, curve in in_order(curves).items()
    }
    compared = "cosine" in curves and len(curves) > 1
    figure, axes = new_figure(columns=1 + compared, width=10 if compared else 6.5, height=4.4)
    left = min(curve.far[0] for curve in curves.values())
    right = max(curve.far[-1] for curve in curves.values())
    n = max((figures.get(method, {}).get(count_key, 0) for method in curves), default=0)
    firm = min(10 / n, right) if n else left
    left = max(left, firm / 10)
    banded = {"cosine", _best_ida(curves, firm)}
    firm_tars, firm_gains = [], []
    for i, (method, style) in enumerate(method_styles(curves).items()):
        curve, band = curves[method], method in banded
        style |= {"label": drawn_text(method_name(method)), "markevery": 0.13}
        style |= {"linewidth": 2.2 if band else 1.4, "zorder": 3 if band else 2}
        color = style["color"]
        axes[0].plot(curve.far, curve.tar, **style)
        firm_tars.append(curve.tar[curve.far >= firm])
        if band:
            axes[0].fill_between(
                curve.far, curve.low, curve.high, color=color, alpha=0.15, linewidth=0
            )
        if compared:
            gain = 100 * _gain(curve, curves["cosine"])
            firm_gains.append(gain[curve.far >= firm])
            axes[1].plot(curve.far, gain, **style)
            shift = (right / left) ** (0.006 * (i - len(curves) / 2))
            intervals = figures.get(method, {}).get(gain_key, {})
            _draw_intervals(axes[1], intervals, shift=shift, factor=100, color=color, zorder=1)
    _fit(axes[0], firm_tars, ceiling=1)
    axes[0].yaxis.set_major_formatter(_percent)
    axes[0].set_title(drawn_text(title))
    if compared:
        _fit(axes[1], firm_gains)
        axes[1].set_title("Gain over Cosine, percentage points")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlim(left if left < right else 0.5 * left, right)
        axis.set_xlabel(rate)
        if n:
            axis.axvspan(left, firm, color="#efefef", zorder=0, label=f"fewer than 10 {counted}")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(handles), 5 if compared else 3)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
    if any(np.isfinite(curves[method].low).any() for method in banded & curves.keys()):
        reading += " Bands and bars are 95 % intervals."
    if n:
        reading += f" In the shaded part fewer than ten {counted} decide: differences mean little."
    figure.set_label(reading)
    return figure


def _gain(curve: Band, base: Band) -> np.ndarray:
    """TAR above the base's at the curve's rates; between the base's points, linear in log FAR."""
    return curve.tar - np.interp(np.log(curve.far), np.log(base.far), base.tar)


def _best_ida(curves: Mapping[str, Band], firm: float) -> str:
    """The IDA method that is highest at the lowest firm rate; "" where there is none."""
    ida = [method for method in curves if is_dao(method)]
    return max(
        ida, key=lambda m: np.interp(np.log(firm), np.log(curves[m].far), curves[m].tar), default=""
    )


def _draw_intervals(
    axis: Axes,
    intervals: Mapping[str, tuple[float, float]],
    *,
    shift: float,
    factor: float,
    color: str,
    **style: Any,
) -> None:
    """Bars at rates or sizes, shifted so that those of several methods do not hide each other."""
    for place, (low, high) in intervals.items():
        if low is not None and high is not None:
            axis.vlines(shift * float(place), factor * low, factor * high, color=color, alpha=0.55,
                        linewidth=1.6, **style)  # fmt: skip


def _fit(axis: Axes, values: Sequence[np.ndarray], ceiling: float | None = None) -> None:
    """The vertical limits: all finite values with some room, and a rate's ceiling just visible."""
    everything = np.concatenate(values)
    everything = everything[np.isfinite(everything)]
    if not everything.size:
        return
    low, high = everything.min(), everything.max()
    if ceiling is not None:
        room = max(ceiling - low, 0.005)
        axis.set_ylim(ceiling - 1.08 * room, ceiling + 0.04 * room)
    else:
        margin = max(0.2 * (high - low), 0.01)
        axis.set_ylim(low - margin, high + margin)


@house_style
def det_figure(curves: Mapping[str, Band]) -> Figure:
    """DET curves on normal-deviate axes."""
    if not curves:
        raise UserError("no curves were given, expected at least one to draw")
    figure, (axis,) = new_figure(width=6.5, height=4.8)
    for_method = {method: (curve.far, curve.tar) for method, curve in in_order(curves).items()}
    styles = method_styles(for_method)
    draw_det(axis, {method_name(m): (rates, styles[m]) for m, rates in for_method.items()})
    axis.legend(frameon=False)
    figure.set_label(
        "The share of genuine pairs rejected against the share of impostor pairs accepted; lower "
        "is better. On these axes scores that are normally distributed give a straight line."
    )
    return figure


def draw_det(
    axis: Axes,
    curves: Mapping[str, tuple[tuple[Sequence[float], Sequence[float]], Mapping[str, Any]]],
) -> None:
    """Draws {name: ((FARs, TARs), its line's style)}.

    Rates of 0 and 1 have no place on the axes and are left out; where nothing else is left, the
    axes are empty and say so.
    """
    from scipy.special import ndtri

    drawn = []
    for name, (rates, style) in curves.items():
        points = [
            (far, 1 - tar)
            for far, tar in zip(*rates, strict=True)
            if 0 < far < 1 and 0 < 1 - tar < 1
        ]
        drawn += points
        far, frr = zip(*points, strict=True) if points else ((), ())
        axis.plot(ndtri(far), ndtri(frr), label=drawn_text(name), markevery=0.13, **style)
    if not drawn:
        text = "No threshold gives errors of both kinds:\nnothing can be drawn on these axes"
        axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    powers = range(max(-9, math.floor(math.log10(min((far for far, _ in drawn), default=0.1)))), 0)
    # From the right, so that 10 % is kept where every second power has room.
    ticks = [10.0**power for power in powers[:: -1 if len(powers) < 6 else -2]]
    axis.set_xticks(
        ndtri(ticks), [f"{100 * tick:.7f}".rstrip("0").rstrip(".") + " %" for tick in ticks]
    )
    low, high = (end((frr for _, frr in drawn), default=0.5) for end in (min, max))
    levels = _DET_LEVELS if high > 100 * low else _FINE_DET_LEVELS
    levels = [rate for rate in levels if 0.5 * low <= rate <= 2 * high]
    axis.set_yticks(ndtri(levels), [f"{100 * rate:g} %" for rate in levels])
    axis.set_title("Detection error trade-off (DET)")
    axis.set_xlabel("false accept rate (FAR)")
    axis.set_ylabel("false reject rate (1 − TAR)")


@house_style
def sweep_figure(sweeps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """TAR against k, τ and |A| side by side, a row for each FAR; cosine's level is dashed.

    Args:
      sweeps: {"k": {"values": [1, 5], "tar@far": {"0.0001": [0.90, 0.91]}, "cosine": {"0.0001":
        0.89}}, "tau": …, "anchors": …}: TARs as fractions, one per value. Any of the three.
    """
    fars = sorted({float(far) for sweep in sweeps.values() for far in sweep["tar@far"]})[::-1]
    if not fars:
        raise UserError("no sweep was given, expected one of k, tau or anchors with TARs to draw")
    rows, columns = len(fars), len(sweeps)
    width = 10 if columns > 1 else 6.5
    figure, axes = new_figure(
        rows=rows, columns=columns, width=width, height=0.5 + 2.9 * rows, sharey="row"
    )
    for i, far in enumerate(fars):
        for axis, (name, sweep) in zip(axes[i * columns :], sweeps.items(), strict=False):
            _draw_sweep(axis, name, sweep, far)
            if i == rows - 1:
                axis.set_xlabel(_SWEPT.get(name, name))
        axes[i * columns].set_ylabel(f"TAR at FAR {far_name(far)}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    figure.set_label(
        "The share of genuine pairs accepted for each value tried, all else as in the settings. "
        "The dashed line is cosine, which none of them changes: IDA gains where it is above."
    )
    return figure


def _draw_sweep(axis: Axes, name: str, sweep: Mapping[str, Any], far: float) -> None:
    values = np.asarray(sweep["values"], np.float64)
    styles = method_styles((HEADLINE, BASELINE))
    for key, tars in sweep["tar@far"].items():
        if float(key) != far:
            continue
        if len(tars) != len(values):
            raise UserError(
                f"the sweep of {name} has {len(values)} values and {len(tars)} TARs at FAR {key}: "
                "expected one per value"
            )
        axis.plot(values, tars, label=METHODS[HEADLINE].title, **styles[HEADLINE])
    for key, tar in sweep.get("cosine", {}).items():
        if float(key) == far:
            color, label = styles[BASELINE]["color"], METHODS[BASELINE].title
            axis.axhline(tar, color=color, linestyle="--", linewidth=1.6, label=label)
    if values.size and values.min() > 0 and values.max() >= 8 * values.min():
        axis.set_xscale("log")
    axis.set_xticks(values, _tick_labels(values, log=axis.get_xscale() == "log"))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(_percent)


def _tick_labels(values: np.ndarray, *, log: bool) -> list[str]:
    """A label for each value that lies far enough from the one labelled before; else none."""
    places = np.log(values) if log else np.asarray(values, np.float64)
    span = places.max() - places.min() if places.size else 0
    labels, last = [], -np.inf
    for value, place in zip(values, places, strict=True):
        far_enough = place - last >= 0.1 * span
        labels.append((f"{value:g}" if value < 1e4 else far_name(value)) if far_enough else "")
        last = place if far_enough else last
    return labels


@house_style
def distractors_figure(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Rank-1 against the number of distractors, by method, with 95 % intervals as bars.

    Args:
      figures: each method's, with "rank1@distractors" and, where known, their intervals.
    """
    shown = {m: f for m, f in in_order(figures).items() if f.get("rank1@distractors")}
    if not shown:
        raise UserError("no method has a rank-1 rate against distractors: expected at least one")
    figure, (axis,) = new_figure(width=6.5, height=4.6)
    for i, (method, style) in enumerate(method_styles(shown).items()):
        curve = shown[method]
        rates = {float(size): rate for size, rate in curve["rank1@distractors"].items()}
        sizes = sorted(rates)
        axis.plot(
            sizes, [rates[size] for size in sizes], label=drawn_text(method_name(method)), **style
        )
        shift = 1.08 ** (i - len(shown) / 2)
        intervals = curve.get("rank1_interval@distractors", {})
        _draw_intervals(axis, intervals, shift=shift, factor=1, color=style["color"])
    axis.set_xscale("log")
    axis.set_xlabel("distractors in the gallery")
    axis.yaxis.set_major_formatter(_percent)
    axis.set_title("Rank-1 identification rate")
    axis.legend(frameon=False)
    figure.set_label(
        "The share of probes whose mate is the nearest of all, as the gallery fills up with other "
        "people's faces. Bars are 95 % intervals."
    )
    return figure


def _percent(rate: float, _: int) -> str:
    return f"{100 * rate:.6g} %"
