"""Figures of distributions: scores, generated faces' cosines to training faces, and log F.

N faces, M generated faces, G genuine and n impostor scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import tar_at_far
from ida_jax.report.style import (
    BLUE,
    INK,
    VERMILION,
    drawn_text,
    far_name,
    house_style,
    in_order,
    method_name,
    new_figure,
    new_panels,
    score_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 60
_THRESHOLD = {"color": INK, "linestyle": ":", "linewidth": 1.6}


@house_style
def histogram_figure(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]], *, far: float = 1e-3
) -> Figure:
    """A panel per method: the densities of its genuine and impostor scores, its threshold at a FAR.

    Args:
      scores: a method's (genuine [G], impostor [n]) scores. NaN scores are left out of the bars.
    """
    if not scores:
        raise UserError("no scores were given, expected those of at least one method")
    figure, axes = new_panels(len(scores), height=3.4, above=0.6)
    for axis, (method, split) in zip(axes, in_order(scores).items(), strict=True):
        (point,) = tar_at_far(*split, [far])
        finite = [kind[np.isfinite(kind)] for kind in map(np.asarray, split)]
        if not any(kind.size for kind in finite):
            raise UserError(
                f"{method_name(method)} has no finite score, expected at least one to draw"
            )
        kinds = dict(zip(("genuine", "impostor"), finite, strict=True))
        _draw_densities(axis, kinds, _edges(finite))
        axis.axvline(point.threshold, label=f"threshold, FAR {far_name(far)}", **_THRESHOLD)
        axis.set_title(f"{drawn_text(method_name(method))}: TAR {100 * point.tar:.2f} %")
        axis.set_xlabel(score_name(method))
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


@house_style
def privacy_figure(
    nearest_generated: ArrayLike, nearest_strangers: ArrayLike, threshold: float
) -> Figure:
    """How near generated faces come to a training face, beside people who are not in that set.

    Args:
      nearest_generated: [M], each generated face's cosine to the nearest training face, before any
        is dropped.
      nearest_strangers: [N], each real person's cosine to the nearest training face of another
        person: what is usual among people who have nothing to do with each other.
      threshold: the cosine above which generated faces are dropped.
    """
    kinds = {
        "generated faces": nearest_generated,
        "real people, to others' faces": nearest_strangers,
    }
    cosines = {name: np.asarray(values, np.float64).ravel() for name, values in kinds.items()}
    cosines = {name: values[np.isfinite(values)] for name, values in cosines.items()}
    for name, values in cosines.items():
        if not values.size:
            raise UserError(f"no finite cosine of {name} was given, expected at least one to draw")
    named = {
        f"{values.size:,} {name}, {100 * np.mean(values > threshold):.2g} % above": values
        for name, values in cosines.items()
    }
    figure, (axis,) = new_figure(width=6.5, height=4.4)
    _draw_densities(axis, named, _edges([*cosines.values(), np.array([threshold])]))
    axis.axvline(threshold, label=f"threshold, {threshold:.3g}", **_THRESHOLD)
    axis.set_xlabel("cosine to the nearest training face")
    axis.set_ylabel("density (log scale)")
    figure.legend(loc="outside upper left", ncols=1, frameon=False)
    figure.set_label(
        "How similar each generated face is to the nearest face that the generator was trained on, "
        "beside real people and the nearest face of anybody else, on a logarithmic scale so that a "
        "few copies show. A generator that copies people has a hump on the right, where two images "
        "of one person lie; faces right of the dotted threshold are dropped."
    )
    return figure


@house_style
def log_density_figure(
    log_density: np.ndarray, domains: np.ndarray, domain_names: Sequence[str]
) -> Figure:
    """log F of every face, by domain: dots as wide as the values are frequent, and quartile boxes.

    Args:
      log_density: [N] log F.
      domains: int [N], the domain of each face, an index into `domain_names`.
      domain_names: the domains' names. Those without a face are left out.
    """
    log_density, domains = np.asarray(log_density), np.asarray(domains)
    if log_density.ndim != 1 or log_density.shape != domains.shape:
        raise UserError(
            f"log F of shape {log_density.shape} and domains of shape {domains.shape} were given, "
            "expected one of each per face"
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
        f"{drawn_text(domain_names[domain])}\n{value.size:,} faces"
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


def _edges(kinds: Sequence[np.ndarray]) -> np.ndarray:
    """The bins' edges over all values, finite ones."""
    ends = np.concatenate([[values.min(), values.max()] for values in kinds if values.size])
    return np.histogram_bin_edges(ends.astype(np.float64), bins=_BINS)


def _draw_densities(axis: Axes, kinds: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
    """Two densities by name, the second dashed, on a logarithmic scale down to half a count."""
    width = edges[1] - edges[0]
    for (name, values), (color, line) in zip(
        kinds.items(), ((BLUE, "-"), (VERMILION, "--")), strict=True
    ):
        density = np.histogram(values, edges)[0] / (max(values.size, 1) * width)
        axis.stairs(density, edges, fill=True, color=color, alpha=0.18)
        axis.stairs(
            density, edges, color=color, linestyle=line, linewidth=1.5, label=drawn_text(name)
        )
    axis.set_yscale("log")
    axis.set_ylim(0.5 / (max(values.size for values in kinds.values()) * width), None)
