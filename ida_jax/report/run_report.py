"""The reports of a run and of a protocol's evaluation, from their results.

N faces.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ida_jax.data.contact_sheet import contact_sheet
from ida_jax.data.dataset import FaceDataset
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.roc import SplitScores
from ida_jax.rescoring.method_table import HEADLINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ida_jax.report.failures import ImageOf
    from ida_jax.report.pair_cards import ChangedDecisions

# The stages whose records are drawn, and the figures' captions.
_TRAININGS = {
    "train": "Training the backbone",
    "ssr": "Training the SSR module",
    "pfe": "Training the uncertainty module",
    "gan": "Training the generator",
}
_SHEET_IDENTITIES = 8
_SHEET_COLUMNS = 8


class DensitiesByGroup(NamedTuple):
    """log F of grouped faces.

    Attributes:
      log_density: [N].
      group: int [N], indices into `names`.
    """

    log_density: np.ndarray
    group: np.ndarray
    names: Sequence[str]


def write_run_report(
    path: str | os.PathLike[str],
    *,
    log_density: np.ndarray,
    dataset: FaceDataset,
    scores: Mapping[str, SplitScores] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    changed: ChangedDecisions | None = None,
    sweeps: Mapping[str, Mapping[str, Any]] | None = None,
    **evaluation: Any,
) -> None:
    """Writes the page, its pictures, results.md and results.tex into one folder.

    Args:
      log_density: float32 [N], the searched log F of the evaluation's faces.
      scores: every method's genuine and impostor scores, ascending; None draws no histograms.
      changed: the pairs that two methods decide differently, rows of `dataset`.
      sweeps: TARs against k, τ and the anchors' number (`rate_plots.sweep_figure`).
      **evaluation: title, settings, results and evaluated, as in `write_protocol_report`.
    """
    from ida_jax.report.density_plots import histogram_figure
    from ida_jax.report.pair_cards import pair_section
    from ida_jax.report.rate_plots import sweep_figure
    from ida_jax.report.training_plots import generator_training_figure, training_figure

    figures = {"Scores before and after": histogram_figure(scores)} if scores else {}
    domains, names = dataset.domains, dataset.domain_names
    if domains is None:
        domains, names = np.zeros(len(log_density), np.int32), ("all faces",)
    figures |= _densities(DensitiesByGroup(log_density, domains, names), "log F by domain")
    if sweeps:
        figures["Sweeps of support set, temperature and anchors"] = sweep_figure(sweeps)
    for stage, caption in _TRAININGS.items():
        if records := [record for record in metrics if record["stage"] == stage]:
            draw = generator_training_figure if stage == "gan" else training_figure
            figures[caption] = draw(records)
    pairs = ""
    if changed is not None:
        people = [dataset.identities[label] for label in dataset.labels]
        pairs = pair_section(changed, dataset.images, people=people)
    _write(path, figures, contact_sheet=_sheet(dataset), pairs=pairs, **evaluation)


def write_protocol_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    evaluated: Mapping[str, Evaluation],
    groups: DensitiesByGroup | None = None,
    face_images: ImageOf | None = None,
) -> None:
    """Writes the report of an evaluation of embeddings, as `write_run_report` does.

    Args:
      groups: log F by group, where it is known.
      face_images: the faces' images by name, for those of the pairs to look at.
    """
    figures = {} if groups is None else _densities(groups, "log F by group")
    _write(
        path,
        figures,
        title=title,
        settings=settings,
        results=results,
        evaluated=evaluated,
        face_images=face_images,
    )


def _write(
    path: str | os.PathLike[str],
    figures: Mapping[str, Figure],
    *,
    results: Mapping[str, Any],
    evaluated: Mapping[str, Evaluation],
    face_images: ImageOf | None = None,
    **page: Any,
) -> None:
    """The report with the variants' curves before the other figures, and its tables."""
    from ida_jax.report.failures import failure_section
    from ida_jax.report.group_tables import group_figure, group_section
    from ida_jax.report.picker import picker_section
    from ida_jax.report.report_page import write_report
    from ida_jax.report.tables import write_tables

    notes = {variant: evaluation.notes for variant, evaluation in evaluated.items()}
    results = {**results, "notes": notes}
    curves = _curves(evaluated)
    for variant, (methods, *_) in evaluated.items():
        if (drawn := group_figure(methods)) is not None:
            curves[f"FAR by group, {variant}"] = drawn
    method = results.get("trial", {}).get("method_to_use", HEADLINE)
    write_report(
        path,
        results=results,
        figures=curves | figures,
        picker=picker_section(evaluated, method=method),
        groups=group_section(results),
        failures=failure_section(evaluated, face_images, method=method),
        **page,
    )
    write_tables(Path(path).parent, results)


def _curves(evaluated: Mapping[str, Evaluation]) -> dict[str, Figure]:
    """Each variant's curves, by caption."""
    from ida_jax.report.rate_plots import det_figure, distractors_figure, roc_figure, tpir_figure

    figures = {}
    for variant, (methods, curves, *_) in evaluated.items():
        keys = set().union(*methods.values())
        if curves and "tpir@fpir" in keys:
            figures[f"TPIR against FPIR, {variant}"] = tpir_figure(curves, figures=methods)
        elif curves:
            figures[f"ROC, {variant}"] = roc_figure(curves, figures=methods)
            figures[f"DET, {variant}"] = det_figure(curves)
        if "rank1@distractors" in keys:
            figures[f"Rank-1 against distractors, {variant}"] = distractors_figure(methods)
    return figures


def _densities(groups: DensitiesByGroup, caption: str) -> dict[str, Figure]:
    """No figure where no face has a finite log F."""
    from ida_jax.report.density_plots import log_density_figure

    if not np.isfinite(groups.log_density).any():
        return {}
    return {caption: log_density_figure(*groups)}


def _sheet(dataset: FaceDataset) -> np.ndarray:
    """A row of images for each of a few identities, taken evenly from the domains."""
    counts = np.bincount(dataset.labels)
    domain = np.zeros(len(counts), np.int32)
    if dataset.domains is not None:
        domain[dataset.labels] = dataset.domains
    # The richest identities of each domain in turn, so that a row shows one person varied.
    order = np.lexsort((np.arange(len(counts)), -counts, domain))
    place = np.arange(len(order)) - np.searchsorted(domain[order], domain[order])
    chosen = order[np.lexsort((domain[order], place))][:_SHEET_IDENTITIES]
    columns = min(_SHEET_COLUMNS, int(counts[chosen].min()))
    rows = [
        row for identity in chosen for row in np.flatnonzero(dataset.labels == identity)[:columns]
    ]
    return contact_sheet(np.stack([dataset.images[row] for row in rows]), columns=columns)
