"""ROC, TPIR and DET curves.

Each returns a matplotlib Figure; its label (`Figure.get_label()`) is a sentence or two on how to
read it, which the page prints. n impostor scores, or searches for people who are not enrolled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import Band
from ida_jax.report.look import in_our_look, method_styles, new_figure
from ida_jax.report.names import in_order, method_name
from ida_jax.rescoring.method_table import is_dao

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DET_LEVELS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
_FINE_DET_LEVELS = (1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
_Figures = Mapping[str, Mapping[str, Any]]


@in_our_look
def roc_figure(curves: Mapping[str, Band], *, figures: _Figures | None = None) -> Figure:
    """ROC curves by method; beside them, where cosine is among them, each one's gain over cosine.

    The bands of cosine and of the best IDA are drawn, those of others would only hide them. Left of
    FAR 10/n fewer than ten false accepts decide: that part is shaded, and the axes are fitted to
    the rest.

    Args:
      curves: each method's curve. Ends of a band that are NaN are not drawn.
      figures: the methods' figures (`ida_jax.report.cells`), for n ("impostor") and the intervals
        of the gains ("tar_gain_interval@far").

    Raises:
      UserError: no curve.
    """
    return _rate_figure(
        curves,
        figures or {},
        kind=("impostor", "tar_gain_interval@far"),
        names=("True accept rate", "false accept rate (FAR)", "false accepts"),
        reading="The share of genuine pairs accepted (higher is better) when that share of "
        "impostor pairs is let through; strict settings are on the left.",
    )


@in_our_look
def tpir_figure(curves: Mapping[str, Band], *, figures: _Figures | None = None) -> Figure:
    """TPIR against FPIR by method, of an open-set search; drawn as `roc_figure` draws.

    Args:
      curves: each method's curve, its `far` an FPIR and its `tar` a TPIR.
      figures: the methods' figures, for n ("nonmated_probes") and "tpir_gain_interval@fpir".

    Raises:
      UserError: no curve.
    """
    return _rate_figure(
        curves,
        figures or {},
        kind=("nonmated_probes", "tpir_gain_interval@fpir"),
        names=(
            "True positive identification rate (TPIR)",
            "false positive identification rate (FPIR)",
            "false alarms",
        ),
        reading="The share of searches whose person scores above the threshold, at whatever rank "
        "(higher is better), when that share of searches for absent people raises an alarm.",
    )


def _rate_figure(
    curves: Mapping[str, Band],
    figures: _Figures,
    *,
    kind: tuple[str, str],
    names: tuple[str, str, str],
    reading: str,
) -> Figure:
    if not curves:
        raise UserError("no curves were given, expected at least one to draw")
    (count_key, gain_key), (title, rate, counted) = kind, names
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
    gains = {
        method: 100 * _gain(curve, curves["cosine"]) if compared else np.zeros(0)
        for method, curve in curves.items()
    }
    for i, ((method, curve), (color, line, marker)) in enumerate(
        zip(curves.items(), method_styles(curves), strict=True)
    ):
        style = {"color": color, "linestyle": line, "label": method_name(method)}
        style |= {"marker": marker, "markersize": 5, "markevery": 0.13, "markerfacecolor": "white"}
        style["linewidth"] = 2.2 if method in banded else 1.4
        style["zorder"] = 3 if method in banded else 2
        axes[0].plot(curve.far, curve.tar, **style)
        if method in banded:
            axes[0].fill_between(
                curve.far, curve.low, curve.high, color=color, alpha=0.15, linewidth=0
            )
        if compared:
            axes[1].plot(curve.far, gains[method], **style)
            _draw_intervals(
                axes[1],
                {
                    float(far): ends
                    for far, ends in figures.get(method, {}).get(gain_key, {}).items()
                },
                shift=(right / left) ** (0.006 * (i - len(curves) / 2)),
                color=color,
            )
    _fit(axes[0], [curve.tar[curve.far >= firm] for curve in curves.values()], ceiling=1)
    axes[0].yaxis.set_major_formatter(lambda tar, _: f"{100 * tar:.6g} %")
    axes[0].set_title(title)
    if compared:
        _fit(axes[1], [gains[method][curve.far >= firm] for method, curve in curves.items()])
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


def _best_ida(curves: Mapping[str, Band], firm: float) -> str:
    """The IDA method that is highest at the lowest firm rate; "" where there is none."""
    ida = [method for method in curves if is_dao(method)]
    return max(
        ida, key=lambda m: np.interp(np.log(firm), np.log(curves[m].far), curves[m].tar), default=""
    )


def _draw_intervals(
    axis: Axes, intervals: Mapping[float, tuple[float, float]], *, shift: float, color: str
) -> None:
    """Bars at each rate, moved a little so that those of several methods do not hide each other."""
    for rate, ends in intervals.items():
        if any(end is None for end in ends):
            continue
        low, high = (100 * end for end in ends)
        axis.vlines(shift * rate, low, high, color=color, alpha=0.55, linewidth=1.6, zorder=1)


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


@in_our_look
def det_figure(curves: Mapping[str, Band]) -> Figure:
    """DET curves on normal-deviate axes.

    Raises:
      UserError: no curve.
    """
    if not curves:
        raise UserError("no curves were given, expected at least one to draw")
    curves = in_order(curves)
    figure, (axis,) = new_figure(width=6.5, height=4.8)
    named = {method_name(m): (curve.far, curve.tar) for m, curve in curves.items()}
    draw_det(axis, named, dict(zip(named, method_styles(curves), strict=True)))
    axis.legend(frameon=False)
    figure.set_label(
        "The share of genuine pairs rejected against the share of impostor pairs accepted; lower "
        "is better. On these axes scores that are normally distributed give a straight line."
    )
    return figure


def draw_det(
    axis: Axes,
    named: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, tuple],
) -> None:
    """Draws {name: (FARs, TARs)}, each in its `method_styles` style.

    Rates of 0 and 1 have no place on the axes and are left out.
    """
    from scipy.special import ndtri

    drawn = []
    for name, rates in named.items():
        points = [
            (far, 1 - tar)
            for far, tar in zip(*rates, strict=True)
            if 0 < far < 1 and 0 < 1 - tar < 1
        ]
        drawn += points
        color, line, marker = styles[name]
        far, frr = zip(*points, strict=True) if points else ((), ())
        axis.plot(
            ndtri(far), ndtri(frr), color=color, linestyle=line, linewidth=1.8, label=name,
            marker=marker, markersize=5, markevery=0.13, markerfacecolor="white",
        )  # fmt: skip
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


def _gain(curve: Band, base: Band) -> np.ndarray:
    """TAR above the base's at the curve's rates; between the base's points, linear in log FAR."""
    return curve.tar - np.interp(np.log(curve.far), np.log(base.far), base.tar)
