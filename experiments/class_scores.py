"""Training faces against the class weights, for Fig. 3, 8 and 9.

n samples, C classes, D embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ida_jax.artefacts.face_model import FaceModel
from ida_jax.data.dataset import image_subset
from ida_jax.runs.run import Run
from ida_jax.training.head_step import margin_head

_SLAB = 256


class Sample(NamedTuple):
    """Some training faces.

    Attributes:
      faces: float32 [n, D], unit rows.
      labels: int32 [n], their classes.
      weights: float32 [C, D], unit rows.
    """

    faces: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class Segments(NamedTuple):
    """Two disjoint segments of the samples by probability, bool [n] each."""

    low: np.ndarray
    high: np.ndarray


class Panel(NamedTuple):
    """One panel of a figure.

    Attributes:
      title: above it.
      xlabel: what is distributed.
      series: {label: values}, at most two.
      log: whether the density is on a log scale.
    """

    title: str
    xlabel: str
    series: dict[str, np.ndarray]
    log: bool = False


def sampled_faces(run: Run, model: FaceModel, *, count: int) -> Sample:
    """Training faces drawn by the run's seed, embedded by a state of its model, without mirroring,
    as the training sees most of them."""
    data = run.train_faces
    rng = np.random.default_rng(run.config.seed)
    rows = np.sort(rng.choice(len(data.labels), min(count, len(data.labels)), replace=False))
    faces = model.embed(image_subset(data.images, rows), progress="embed training faces")
    weights = model.class_weights
    unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return Sample(faces, data.labels[rows], unit)


def log_odds(sample: Sample, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's cosine to its own class, and the log odds of its probability.

    p = e^{z_y} / Σ_j e^{z_j} is the softmax's output as the loss has it (Eq. 2), with the margin in
    z_y; its log odds z_y − log Σ_{j≠y} e^{z_j} rank the same and do not end at 1. float64 [n] each.
    """
    head = margin_head(config.train, num_classes=len(sample.weights))
    cosines, odds = [], []
    for start in range(0, len(sample.faces), _SLAB):
        faces, labels = sample.faces[start : start + _SLAB], sample.labels[start : start + _SLAB]
        every = np.clip(faces @ sample.weights.T, -1, 1)
        own = np.arange(len(labels)), labels
        cosine = every[own].copy()
        logits = config.train.scale * every.astype(np.float64)
        logits[own] = -np.inf
        label_logits = np.asarray(head.label_logits(jnp.asarray(cosine)), np.float64)
        cosines.append(cosine.astype(np.float64))
        odds.append(label_logits - np.logaddexp.reduce(logits, axis=1))
    return np.concatenate(cosines), np.concatenate(odds)


def segments(odds: np.ndarray) -> Segments:
    """The samples between the 10 % and 30 % quantiles of the probability, and the 70 % and 90 %."""
    ends = np.quantile(odds, (0.1, 0.3, 0.7, 0.9))
    return Segments((odds >= ends[0]) & (odds <= ends[1]), (odds >= ends[2]) & (odds <= ends[3]))


def overlap(low: np.ndarray, high: np.ndarray) -> float:
    """1 − max_t (F_low(t) − F_high(t)): the samples on the wrong side of the best single threshold,
    as shares of either segment, added up.

    0 where a threshold parts the two, 1 where none tells anything. No bins, and the same on any
    scale: 1 less the (one-sided) Kolmogorov–Smirnov distance.
    """
    every = np.sort(np.concatenate([low, high]))
    below = [
        np.searchsorted(np.sort(each), every, side="right") / each.size for each in (low, high)
    ]
    return float(1 - max(0.0, np.max(below[0] - below[1])))


def density_figure(rows: Sequence[Sequence[Panel]]) -> Any:
    """Densities as histograms of 40 bins, a row of panels each; those below each other that show
    the same share their range."""
    from ida_jax.report.style import BLUE, VERMILION, house_style, new_figure

    @house_style
    def draw() -> Any:
        count = len(rows), len(rows[0])
        figure, axes = new_figure(
            rows=count[0], columns=count[1], width=3.4 * count[1], height=0.5 + 2.5 * count[0]
        )
        for place, axis in enumerate(axes):
            row, column = divmod(place, count[1])
            panel = rows[row][column]
            everything = np.concatenate([s for each in rows for s in each[column].series.values()])
            edges = np.linspace(everything.min(), everything.max() + 1e-9, 41)
            looks = zip(panel.series.items(), ((BLUE, "-"), (VERMILION, "--")), strict=False)
            for (label, values), (color, line) in looks:
                height, _ = np.histogram(values, edges, density=True)
                axis.stairs(height, edges, fill=True, color=color, alpha=0.18)
                axis.stairs(height, edges, color=color, linestyle=line, linewidth=1.5, label=label)
            axis.set_title(panel.title, fontsize=9.5)
            axis.set_xlabel(panel.xlabel)
            if panel.log:
                axis.set_yscale("log")
                axis.set_ylabel("density, log scale")
            else:
                axis.set_yticks([])
                axis.set_ylabel("density")
            if len(panel.series) > 1:
                axis.legend(frameon=False, fontsize=8)
        return figure

    return draw()
