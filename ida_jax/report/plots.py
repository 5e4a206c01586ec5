"""Figures of a report. Each function returns a matplotlib Figure, made without pyplot's state.

A figure's label (`Figure.get_label()`) is a sentence or two on how to read it; the page prints it.
Colours are Okabe and Ito's, told apart by colour-blind readers; line styles and markers tell curves
apart in black and white. N faces, G genuine and n impostor scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.errors import UserError
from ida_jax.protocols.roc import Curve, tar_at_far
from ida_jax.report.tables import far_name, in_order, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
_INK = "#222222"
_BLUE, _VERMILION = "#0072B2", "#D55E00"
# A method keeps its colour, line and marker whatever stands beside it.
_STYLES = {
    "cosine": (_INK, "--", "o"),
    "ida_r": (_BLUE, "-", "s"),
    "ida_l": (_VERMILION, "-.", "^"),
    "pfe": ("#009E73", ":", "D"),
    "as_norm": ("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v"),
    "pfe_ida_r": ("#CC79A7", "-", "P"),
    "ida_r_fallback": ("#56B4E9", "--", "X"),
    "csn": ("#8C6D1F", "-.", ">"),
    "s_norm": ("#999999", ":", "<"),
}
_SPARE_STYLES = (("#7B4F9D", "-", "h"), ("#4D4D4D", ":", "d"), ("#A0522D", "--", "p"))
_LOOK = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "axes.labelcolor": _INK, "axes.titlecolor": _INK,
    "xtick.color": "#888888", "ytick.color": "#888888", "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK, "axes.grid": True, "grid.color": "#d9d9d9", "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}  # fmt: skip


def in_our_look(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function, drawing with _LOOK and leaving the user's matplotlib settings as they are."""

    @functools.wraps(draw)
    def styled(*args: Any, **options: Any) -> Figure:
        from matplotlib import rc_context

        with rc_context(_LOOK):
            return draw(*args, **options)

    return styled


@in_our_look
def roc_figure(curves: Mapping[str, Curve]) -> Figure:
    """ROC curves by method; beside them, where cosine is among them, each one's gain over cosine.

    Left of FAR 10/n fewer than ten false accepts decide: that part is shaded, and the TAR axis is
    fitted to the rest.

    Raises:
      UserError: no curve.
    """
    if not curves:
        raise UserError("no curves were given, expected at least one to draw")
    compared = "cosine" in curves and len(curves) > 1
    figure, axes = new_figure(columns=1 + compared, width=10 if compared else 6.5, height=4.4)
    firm = 10 * min(curve.far[0] for curve in curves.values())
    for (method, curve), (color, line, marker) in zip(
        in_order(curves).items(), method_styles(in_order(curves)), strict=True
    ):
        style = {"color": color, "linestyle": line, "linewidth": 1.8, "label": method_name(method)}
        style |= {"marker": marker, "markersize": 5, "markevery": 0.13, "markerfacecolor": "white"}
        axes[0].plot(curve.far, curve.tar, **style)
        if compared:
            axes[1].plot(curve.far, 100 * _gain(curve, curves["cosine"]), **style)

    lowest = min(np.min(curve.tar[curve.far >= min(firm, 1)]) for curve in curves.values())
    room = max(1 - lowest, 0.005)
    axes[0].set_ylim(1 - 1.08 * room, 1 + 0.04 * room)
    axes[0].yaxis.set_major_formatter(lambda tar, _: f"{100 * tar:.6g} %")
    axes[0].set_title("True accept rate")
    if compared:
        firm_gains = [
            100 * _gain(curve, curves["cosine"])[curve.far >= min(firm, 1)]
            for curve in curves.values()
        ]
        low, high = np.min(np.concatenate(firm_gains)), np.max(np.concatenate(firm_gains))
        margin = max(0.12 * (high - low), 0.01)
        axes[1].set_ylim(low - margin, high + margin)
        axes[1].set_title("Gain over Cosine, percentage points")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlim(min(firm / 10, 0.5), 1)
        axis.set_xlabel("false accept rate (FAR)")
        axis.axvspan(
            firm / 10, min(firm, 1), color="#efefef", zorder=0, label="fewer than 10 false accepts"
        )
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(handles), 5 if compared else 3)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
    figure.set_label(
        "The share of genuine pairs accepted (higher is better) when that share of impostor pairs "
        "is let through; strict settings are on the left. In the shaded part fewer than ten "
        "impostor pairs decide, so differences there mean little."
    )
    return figure


@in_our_look
def histogram_figure(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]], *, far: float = 1e-3
) -> Figure:
    """One panel a method: densities of its genuine and impostor scores, and the threshold at a FAR.

    Args:
      scores: a method's (genuine [G], impostor [n]) scores. NaN scores are left out of the bars.
      far: the FAR whose threshold is marked.

    Raises:
      UserError: no method, no scores of a kind, or no finite ones.
    """
    if not scores:
        raise UserError("no scores were given, expected those of at least one method")
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    figure, axes = new_figure(
        rows=rows, columns=columns, width=6.5 if columns == 1 else 10, height=0.6 + 3.4 * rows
    )
    for axis, (method, (genuine, impostor)) in zip(axes, in_order(scores).items(), strict=False):
        (point,) = tar_at_far(genuine, impostor, [far])
        finite = [kind[np.isfinite(kind)] for kind in (np.asarray(genuine), np.asarray(impostor))]
        if not any(kind.size for kind in finite):
            raise UserError(
                f"{method_name(method)} has no finite score, expected at least one to draw"
            )
        everything = np.concatenate([[kind.min(), kind.max()] for kind in finite if kind.size])
        edges = np.histogram_bin_edges(everything.astype(np.float64), bins=60)
        width = edges[1] - edges[0]
        looks = (("genuine", _BLUE, "-"), ("impostor", _VERMILION, "--"))
        for (label, color, line), kind in zip(looks, finite, strict=True):
            density = np.histogram(kind, edges)[0] / (max(kind.size, 1) * width)
            axis.stairs(density, edges, fill=True, color=color, alpha=0.18)
            axis.stairs(density, edges, color=color, linestyle=line, linewidth=1.5, label=label)
        axis.set_yscale("log")
        axis.set_ylim(0.5 / (max(kind.size for kind in finite) * width), None)
        axis.axvline(point.threshold, color=_INK, linestyle=":", linewidth=1.6,
                     label=f"threshold, FAR {far_name(far)}")  # fmt: skip
        axis.set_title(f"{method_name(method)}: TAR {100 * point.tar:.2f} %")
        axis.set_xlabel(_score_name(method))
    for axis in axes[len(scores) :]:
        axis.remove()
    axes[0].set_ylabel("density (log scale)")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False
    )
    figure.set_label(
        "Scores of genuine pairs (solid) and impostor pairs (dashed), on a logarithmic scale so "
        "that the tails show. Genuine pairs right of the dotted threshold are accepted at FAR "
        f"{far_name(far)}; the less the impostors' right tail reaches into them, the better."
    )
    return figure


@in_our_look
def log_density_figure(
    log_density: np.ndarray, domains: np.ndarray, domain_names: Sequence[str]
) -> Figure:
    """log F of every face, by domain: dots as wide as the values are frequent, and quartile boxes.

    Args:
      log_density: [N] log F.
      domains: int [N], the domain of each face, a place in `domain_names`.
      domain_names: the domains' names. Those without a face are left out.

    Raises:
      UserError: lengths that differ, no face with a finite log F, or a domain without a name.
    """
    log_density, domains = np.asarray(log_density), np.asarray(domains)
    if log_density.ndim != 1 or log_density.shape != domains.shape:
        raise UserError(
            f"log F of shape {log_density.shape} and domains of shape {domains.shape} were given, "
            "expected one of each a face"
        )
    finite = np.isfinite(log_density)
    log_density, domains = log_density[finite], domains[finite]
    if not domains.size:
        raise UserError("no face with a finite log F was given, expected at least one to draw")
    if domains.min() < 0 or domains.max() >= len(domain_names):
        raise UserError(
            f"domains from {domains.min()} to {domains.max()} were given with "
            f"{len(domain_names)} names, expected a name for each"
        )
    present = np.unique(domains)
    values = [log_density[domains == domain] for domain in present]
    crowded = int(np.argmin([np.median(value) for value in values]))
    figure, (axis,) = new_figure(width=max(6.5, 1.4 * len(present) + 1.5), height=4.6)
    rng = np.random.default_rng(0)
    for i, value in enumerate(values):
        color = _VERMILION if i == crowded and len(present) > 1 else _BLUE
        shown = rng.permutation(value)[:1500]
        counts, edges = np.histogram(shown, bins=30)
        frequency = (counts / counts.max())[np.clip(np.digitize(shown, edges) - 1, 0, 29)]
        across = i + 0.36 * frequency * rng.uniform(-1, 1, shown.size)
        axis.plot(across, shown, ".", color=color, markersize=3.5, alpha=0.45, markeredgewidth=0)
        axis.boxplot(
            [value], positions=[i], widths=0.14, showfliers=False, patch_artist=True, zorder=3,
            boxprops={"facecolor": "white", "edgecolor": _INK}, whiskerprops={"color": _INK},
            capprops={"linewidth": 0}, medianprops={"color": _INK, "linewidth": 2.2},
        )  # fmt: skip
    names = [
        f"{domain_names[domain]}\n{value.size:,} faces"
        for domain, value in zip(present, values, strict=True)
    ]
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.grid(False, axis="x")
    axis.set_ylabel("log F   (lower: more crowded)")
    figure.set_label(
        "Each dot is a face, the boxes hold the middle half of a domain. Low values mean that many "
        "other people's faces lie near: the model separates that domain less well, and IDA lowers "
        "its scores accordingly. The most crowded domain is vermilion."
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
        axes[0].plot(steps, losses, color=_BLUE, linewidth=1.8)
    else:
        axes[0].plot(steps, losses, color=_BLUE, linewidth=0.8, alpha=0.35, label="logged")
        middle = slice(window // 2, window // 2 + steps.size - window + 1)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes[0].plot(steps[middle], smooth, color=_BLUE, linewidth=2,
                     label=f"mean of {window} records")  # fmt: skip
        axes[0].legend(frameon=False)
    if rates.size:
        axes[1].step(rate_steps, rates, where="post", color=_VERMILION, linewidth=1.8)
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


def new_figure(
    *, rows: int = 1, columns: int = 1, width: float, height: float
) -> tuple[Figure, list[Axes]]:
    """A figure in inches, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()


def method_styles(methods: Mapping[str, Any]) -> list[tuple]:
    """Each method's colour, line and marker."""
    unknown = [method for method in methods if method not in _STYLES]
    spare = {m: _SPARE_STYLES[i % len(_SPARE_STYLES)] for i, m in enumerate(unknown)}
    return [_STYLES.get(method) or spare[method] for method in methods]


def _gain(curve: Curve, base: Curve) -> np.ndarray:
    """TAR above the base's at the curve's FARs; between the base's points, linear in log FAR."""
    return curve.tar - np.interp(np.log(curve.far), np.log(base.far), base.tar)


def _score_name(method: str) -> str:
    if method == "cosine":
        return "cosine similarity"
    return "log-DAO" if "ida" in method else "score"


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(m["step"], m[key]) for m in metrics if "step" in m and m.get(key) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps), np.array(values, np.float64)
