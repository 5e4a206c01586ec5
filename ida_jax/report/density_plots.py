"""Figures of how scores and log F are distributed.

Each returns a matplotlib Figure; its label is a sentence or two on how to read it. N faces, G
genuine and n impostor scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import tar_at_far
from ida_jax.report.look import BLUE, INK, VERMILION, in_our_look, new_figure
from ida_jax.report.names import far_name, in_order, method_name, score_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        looks = (("genuine", BLUE, "-"), ("impostor", VERMILION, "--"))
        for (label, color, line), kind in zip(looks, finite, strict=True):
            density = np.histogram(kind, edges)[0] / (max(kind.size, 1) * width)
            axis.stairs(density, edges, fill=True, color=color, alpha=0.18)
            axis.stairs(density, edges, color=color, linestyle=line, linewidth=1.5, label=label)
        axis.set_yscale("log")
        axis.set_ylim(0.5 / (max(kind.size for kind in finite) * width), None)
        axis.axvline(point.threshold, color=INK, linestyle=":", linewidth=1.6,
                     label=f"threshold, FAR {far_name(far)}")  # fmt: skip
        axis.set_title(f"{method_name(method)}: TAR {100 * point.tar:.2f} %")
        axis.set_xlabel(score_name(method))
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
        color = VERMILION if i == crowded and len(present) > 1 else BLUE
        shown = rng.permutation(value)[:1500]
        counts, edges = np.histogram(shown, bins=30)
        frequency = (counts / counts.max())[np.clip(np.digitize(shown, edges) - 1, 0, 29)]
        across = i + 0.36 * frequency * rng.uniform(-1, 1, shown.size)
        axis.plot(across, shown, ".", color=color, markersize=3.5, alpha=0.45, markeredgewidth=0)
        axis.boxplot(
            [value], positions=[i], widths=0.14, showfliers=False, patch_artist=True, zorder=3,
            boxprops={"facecolor": "white", "edgecolor": INK}, whiskerprops={"color": INK},
            capprops={"linewidth": 0}, medianprops={"color": INK, "linewidth": 2.2},
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
