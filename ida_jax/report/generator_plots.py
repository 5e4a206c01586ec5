"""Figures of a generator of faces: whether it copies anyone, and how its training went.

Each returns a matplotlib Figure; its label is a sentence or two on how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.report.look import BLUE, INK, VERMILION, in_our_look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 60
# A panel: its title, and what it draws, {key of a record: (name, colour, line)}.
_PANELS: tuple[tuple[str, dict[str, tuple[str, str, str]]], ...] = (
    ("Fréchet distance", {"frechet": ("Fréchet distance", BLUE, "-")}),
    (
        "Precision and recall",
        {"precision": ("precision", BLUE, "-"), "recall": ("recall", VERMILION, "--")},
    ),
    (
        "Losses",
        {
            "discriminator_loss": ("discriminator", BLUE, "-"),
            "generator_loss": ("generator", VERMILION, "--"),
        },
    ),
    (
        "The discriminator's mean logit",
        {"real_logit": ("real faces", BLUE, "-"), "fake_logit": ("generated", VERMILION, "--")},
    ),
    ("Augmentation probability", {"augment_probability": ("probability", BLUE, "-")}),
)


@in_our_look
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

    Raises:
      UserError: no finite cosine of a kind.
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
    everything = np.concatenate([*cosines.values(), [threshold]])
    edges = np.histogram_bin_edges(everything, bins=_BINS)
    width = edges[1] - edges[0]
    figure, (axis,) = new_figure(width=6.5, height=4.4)
    looks = ((BLUE, "-"), (VERMILION, "--"))
    for (name, values), (color, line) in zip(cosines.items(), looks, strict=True):
        density = np.histogram(values, edges)[0] / (values.size * width)
        above = np.mean(values > threshold)
        axis.stairs(density, edges, fill=True, color=color, alpha=0.18)
        axis.stairs(density, edges, color=color, linestyle=line, linewidth=1.5,
                    label=f"{values.size:,} {name}, {100 * above:.2g} % above")  # fmt: skip
    axis.axvline(threshold, color=INK, linestyle=":", linewidth=1.6,
                 label=f"threshold, {threshold:.3g}")  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(0.5 / (max(values.size for values in cosines.values()) * width), None)
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


@in_our_look
def generator_training_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """What was recorded over the images shown, a panel a kind: distances, shares, losses, logits.

    Args:
      metrics: records of the stage "gan" of a run's `metrics.jsonl`, with "images" and any of
        "frechet", "precision", "recall", "discriminator_loss", "generator_loss", "real_logit",
        "fake_logit" and "augment_probability"; others are passed over.

    Raises:
      UserError: no record with images and one of these.
    """
    panels = []
    for title, kinds in _PANELS:
        series = {key: _series(metrics, key) for key in kinds}
        if any(images.size for images, _ in series.values()):
            panels.append((title, kinds, series))
    if not panels:
        raise UserError(
            f"{len(metrics)} records were given, none of a generator's training: pass the records "
            "of the stage gan of a metrics.jsonl"
        )
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(
        rows=rows, columns=columns, width=6.5 if columns == 1 else 10, height=0.3 + 3.0 * rows
    )
    for axis, (title, kinds, series) in zip(axes, panels, strict=False):
        for key, (name, color, line) in kinds.items():
            if series[key][0].size:
                _draw(axis, *series[key], label=name, color=color, linestyle=line)
        axis.set_title(title)
        axis.set_xlabel("images shown")
        axis.xaxis.set_major_formatter(lambda images, _: _short(images))
        axis.xaxis.get_major_locator().set_params(nbins=5)
        axis.set_xlim(left=0)
        if {"frechet", "precision", "augment_probability"} & set(kinds):
            highest = max(values.max(initial=0) for _, values in series.values())
            axis.set_ylim(0, 1.1 * highest or 1)
        if len(kinds) > 1:
            axis.legend(frameon=False)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.set_label(
        "The Fréchet distance between real and generated faces in the model's embedding should "
        "fall; precision is the share of generated faces that lie among real ones, recall the "
        "share of real ones among generated. The discriminator's logits drift apart when it learns "
        "its training images by heart, which the augmentation's probability holds against."
    )
    return figure


def _draw(axis: Axes, images: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Few records as points; many as their running mean, with the records behind it."""
    window = max(1, images.size // 40)
    if window == 1:
        axis.plot(images, values, marker="o", markersize=4, markerfacecolor="white",
                  linewidth=1.8, **style)  # fmt: skip
        return
    axis.plot(images, values, color=style["color"], linewidth=0.7, alpha=0.3)
    middle = slice(window // 2, window // 2 + images.size - window + 1)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axis.plot(images[middle], smooth, linewidth=2, **style)


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(m["images"], m[key]) for m in metrics if "images" in m and m.get(key) is not None]
    images, values = zip(*points, strict=True) if points else ((), ())
    return np.array(images), np.array(values, np.float64)


def _short(images: float) -> str:
    """12,000 as 12k, 1,500,000 as 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if images >= size:
            return f"{images / size:g}{unit}"
    return f"{images:g}"
