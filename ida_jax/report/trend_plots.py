"""Figures of what a run did and of what was varied: training, sweeps, gallery sizes.

Each returns a matplotlib Figure; its label is a sentence or two on how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.report.look import BLUE, VERMILION, in_our_look, method_styles, new_figure
from ida_jax.report.names import far_name, in_order, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SWEPT = {"k": "support set's size k", "tau": "temperature τ", "anchors": "anchors |A|"}


@in_our_look
def sweep_figure(sweeps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """TAR against k, τ and |A| side by side, a row for each FAR; cosine's level is dashed.

    Args:
      sweeps: {"k": {"values": [1, 5], "tar@far": {"0.0001": [0.90, 0.91]}, "cosine": {"0.0001":
        0.89}}, "tau": …, "anchors": …}: TARs as fractions, one a value. Any of the three.

    Raises:
      UserError: nothing swept, or TARs that are not one a value.
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
    (color, line, marker), base_style = method_styles({"ida_r": 0, "cosine": 0})
    for key, tars in sweep["tar@far"].items():
        if float(key) != far:
            continue
        if len(tars) != len(values):
            raise UserError(
                f"the sweep of {name} has {len(values)} values and {len(tars)} TARs at FAR {key}: "
                "expected one a value"
            )
        axis.plot(values, tars, linestyle=line, color=color, marker=marker, linewidth=1.8,
                  markersize=5, markerfacecolor="white", label="IDA-R")  # fmt: skip
    for key, tar in sweep.get("cosine", {}).items():
        if float(key) == far:
            axis.axhline(tar, color=base_style[0], linestyle="--", linewidth=1.6, label="Cosine")
    if values.size and values.min() > 0 and values.max() >= 8 * values.min():
        axis.set_xscale("log")
    axis.set_xticks(values, _tick_labels(values, log=axis.get_xscale() == "log"))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda tar, _: f"{100 * tar:.6g} %")


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


@in_our_look
def distractors_figure(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Rank-1 against the number of distractors, by method, with 95 % intervals as bars.

    Args:
      figures: each method's, with "rank1@distractors" and, where known, their intervals.

    Raises:
      UserError: no method has the figure.
    """
    shown = {m: f for m, f in in_order(figures).items() if f.get("rank1@distractors")}
    if not shown:
        raise UserError("no method has a rank-1 rate against distractors: expected at least one")
    figure, (axis,) = new_figure(width=6.5, height=4.6)
    for i, ((method, curve), (color, line, marker)) in enumerate(
        zip(shown.items(), method_styles(shown), strict=True)
    ):
        rates = {float(size): rate for size, rate in curve["rank1@distractors"].items()}
        sizes = sorted(rates)
        axis.plot(
            sizes, [rates[size] for size in sizes], color=color, linestyle=line, marker=marker,
            markersize=5, markerfacecolor="white", linewidth=1.8, label=method_name(method),
        )  # fmt: skip
        for size, (low, high) in curve.get("rank1_interval@distractors", {}).items():
            # Moved a little, so that the bars of several methods do not hide each other.
            place = float(size) * 1.08 ** (i - len(shown) / 2)
            axis.vlines(place, low, high, color=color, alpha=0.55, linewidth=1.6)
    axis.set_xscale("log")
    axis.set_xlabel("distractors in the gallery")
    axis.yaxis.set_major_formatter(lambda rate, _: f"{100 * rate:.6g} %")
    axis.set_title("Rank-1 identification rate")
    axis.legend(frameon=False)
    figure.set_label(
        "The share of probes whose mate is the nearest of all, as the gallery fills up with other "
        "people's faces. Bars are 95 % intervals."
    )
    return figure


@in_our_look
def training_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and learning rate against the step, from the records of one stage's `metrics.jsonl`.

    Args:
      metrics: records with "step" and any of "loss" and "learning_rate"; others are passed over.

    Raises:
      UserError: no record with a step and a loss.
    """
    steps, losses = _series(metrics, "loss")
    if not steps.size:
        raise UserError(
            f"{len(metrics)} records were given, none with a step and a loss: pass the records of "
            "a metrics.jsonl"
        )
    rate_steps, rates = _series(metrics, "learning_rate")
    figure, axes = new_figure(
        columns=1 + bool(rates.size), width=10 if rates.size else 6.5, height=3.8
    )
    axes[0].set_title("Loss")
    window = max(1, steps.size // 40)
    if window == 1:
        axes[0].plot(steps, losses, color=BLUE, linewidth=1.8)
    else:
        axes[0].plot(steps, losses, color=BLUE, linewidth=0.8, alpha=0.35, label="logged")
        middle = slice(window // 2, window // 2 + steps.size - window + 1)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes[0].plot(steps[middle], smooth, color=BLUE, linewidth=2,
                     label=f"mean of {window} records")  # fmt: skip
        axes[0].legend(frameon=False)
    if rates.size:
        axes[1].step(rate_steps, rates, where="post", color=VERMILION, linewidth=1.8)
        axes[1].set_title("Learning rate")
        if (rates > 0).all() and rates.max() > 3 * rates.min():
            axes[1].set_yscale("log")
    for axis in axes:
        axis.set_xlabel("step")
        axis.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    figure.set_label(
        "The loss should fall and then level off, with drops where the learning rate is lowered. A "
        "gap in the curve is a loss that was not a number."
    )
    return figure


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(m["step"], m[key]) for m in metrics if "step" in m and m.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values, np.float64)
