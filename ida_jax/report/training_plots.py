"""Figures of training: of the backbone and the modules, and of the generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.report.style import BLUE, VERMILION, house_style, new_figure, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A panel: its title, and what it draws, {key of a record: (name, colour, line)}.
_PANELS: tuple[tuple[str, dict[str, tuple[str, str, str]]], ...] = (
    ("Fréchet distance", {"frechet": ("Fréchet distance", BLUE, "-")}),
    ("Precision and recall", {
        "precision": ("precision", BLUE, "-"), "recall": ("recall", VERMILION, "--"),
    }),
    ("Losses", {
        "discriminator_loss": ("discriminator", BLUE, "-"),
        "generator_loss": ("generator", VERMILION, "--"),
    }),
    ("The discriminator's mean logit", {
        "real_logit": ("real faces", BLUE, "-"), "fake_logit": ("generated", VERMILION, "--"),
    }),
    ("Augmentation probability", {"augment_probability": ("probability", BLUE, "-")}),
)  # fmt: skip


@house_style
def training_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and learning rate against the step, from the records of one stage's `metrics.jsonl`.

    Args:
      metrics: records with "step" and any of "loss" and "learning_rate"; others are ignored.
    """
    steps, losses = _series(metrics, "step", "loss")
    if not steps.size:
        raise UserError(
            f"{len(metrics)} records were given, none with a step and a loss: pass the records of "
            "a metrics.jsonl"
        )
    rate_steps, rates = _series(metrics, "step", "learning_rate")
    figure, axes = new_figure(
        columns=1 + bool(rates.size), width=10 if rates.size else 6.5, height=3.8
    )
    axes[0].set_title("Loss")
    window = _window(steps)
    if window == 1:
        axes[0].plot(steps, losses, color=BLUE, linewidth=1.8)
    else:
        axes[0].plot(steps, losses, color=BLUE, linewidth=0.8, alpha=0.35, label="logged")
        axes[0].plot(*_running_mean(steps, losses, window), color=BLUE, linewidth=2,
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


@house_style
def generator_training_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """What was recorded over the images shown, a panel a kind: distances, shares, losses, logits.

    Args:
      metrics: records of the stage "gan" of a run's `metrics.jsonl`, with "images" and any of
        "frechet", "precision", "recall", "discriminator_loss", "generator_loss", "real_logit",
        "fake_logit" and "augment_probability"; others are ignored.
    """
    panels = []
    for title, kinds in _PANELS:
        series = {key: _series(metrics, "images", key) for key in kinds}
        if any(images.size for images, _ in series.values()):
            panels.append((title, kinds, series))
    if not panels:
        raise UserError(
            f"{len(metrics)} records were given, none of a generator's training: pass the records "
            "of the stage gan of a metrics.jsonl"
        )
    figure, axes = new_panels(len(panels), height=3.0, above=0.3)
    for axis, (title, kinds, series) in zip(axes, panels, strict=True):
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
    figure.set_label(
        "The Fréchet distance between real and generated faces in the model's embedding should "
        "fall; precision is the share of generated faces that lie among real ones, recall the "
        "share of real ones among generated. The discriminator's logits drift apart when it learns "
        "its training images by heart, which the augmentation's probability holds against."
    )
    return figure


def _draw(axis: Axes, images: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Few records as points; many as their running mean, with the records behind it."""
    window = _window(images)
    if window == 1:
        axis.plot(images, values, marker="o", markersize=4, markerfacecolor="white",
                  linewidth=1.8, **style)  # fmt: skip
        return
    axis.plot(images, values, color=style["color"], linewidth=0.7, alpha=0.3)
    axis.plot(*_running_mean(images, values, window), linewidth=2, **style)


def _series(
    metrics: Sequence[Mapping[str, Any]], place: str, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """The places (steps or images) and values of the records that have both."""
    points = [(m[place], m[key]) for m in metrics if place in m and m.get(key) is not None]
    places, values = zip(*points, strict=True) if points else ((), ())
    return np.array(places), np.array(values, np.float64)


def _window(places: np.ndarray) -> int:
    """How many records a running mean is over; 1 for too few to need one."""
    return max(1, places.size // 40)


def _running_mean(
    places: np.ndarray, values: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    middle = slice(window // 2, window // 2 + places.size - window + 1)
    return places[middle], np.convolve(values, np.ones(window) / window, mode="valid")


def _short(images: float) -> str:
    """12,000 as 12k, 1,500,000 as 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if images >= size:
            return f"{images / size:g}{unit}"
    return f"{images:g}"
