"""The reports of a run and of a protocol's evaluation, from what these computed.

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ida_jax.report.pair_cards import ChangedDecisions

_SHEET_IDENTITIES = 8
_SHEET_COLUMNS = 8


class Groups(NamedTuple):
    """log F of faces that belong to groups.

    Attributes:
      log_density: [N].
      group: int [N], places in `names`.
      names: the groups'.
    """

    log_density: np.ndarray
    group: np.ndarray
    names: Sequence[str]


def write_run_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    evaluated: Mapping[str, Evaluation],
    log_density: np.ndarray,
    dataset: FaceDataset,
    scores: Mapping[str, SplitScores] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    changed: ChangedDecisions | None = None,
    sweeps: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes the page, its pictures, results.md and results.tex into one folder.

    Args:
      path: the HTML file.
      title: the heading.
      settings: what the run was set to, and the versions that it ran with.
      results: the content of results.json.
      evaluated: each protocol variant's figures, curves and notes.
      log_density: float32 [N], the searched log F of the evaluation's faces.
      dataset: the evaluation's faces.
      scores: every method's genuine and impostor scores, ascending; None draws no histograms.
      metrics: the records of metrics.jsonl.
      changed: the pairs that two methods decide differently, rows of `dataset`.
      sweeps: TARs against k, τ and the anchors' number (`rate_plots.sweep_figure`).
    """
    from ida_jax.report.density_plots import histogram_figure
    from ida_jax.report.pair_cards import pair_section
    from ida_jax.report.rate_plots import sweep_figure
    from ida_jax.report.training_plots import generator_training_figure, training_figure

    figures = _curves(evaluated)
    if scores:
        figures["Scores before and after"] = histogram_figure(scores)
    domains, names = dataset.domains, dataset.domain_names
    if domains is None:
        domains, names = np.zeros(len(log_density), np.int32), ("all faces",)
    figures |= _densities(Groups(log_density, domains, names), "log F by domain")
    if sweeps:
        figures["Sweeps of support set, temperature and anchors"] = sweep_figure(sweeps)
    stages = {
        "train": "Training the backbone",
        "ssr": "Training the SSR module",
        "pfe": "Training the uncertainty module",
    }
    for stage, caption in stages.items():
        if records := [record for record in metrics if record["stage"] == stage]:
            figures[caption] = training_figure(records)
    if records := [record for record in metrics if record["stage"] == "gan"]:
        figures["Training the generator"] = generator_training_figure(records)
    pairs = ""
    if changed is not None:
        people = [dataset.identities[label] for label in dataset.labels]
        pairs = pair_section(changed, dataset.images, people=people)
    _write(
        path,
        title=title,
        results=_with_notes(results, evaluated),
        figures=figures,
        settings=settings,
        contact_sheet=_sheet(dataset),
        pairs=pairs,
    )


def write_protocol_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    evaluated: Mapping[str, Evaluation],
    groups: Groups | None = None,
) -> None:
    """Writes the report of an evaluation without images, as `write_run_report` does.

    Args:
      path: the HTML file.
      title: the heading.
      settings: what it was set to, and the versions that it ran with.
      results: the content of results.json.
      evaluated: each protocol variant's figures, curves and notes.
      groups: log F by group, where it is known.
    """
    figures = _curves(evaluated)
    if groups is not None:
        figures |= _densities(groups, "log F by group")
    _write(
        path,
        title=title,
        results=_with_notes(results, evaluated),
        figures=figures,
        settings=settings,
    )


def _write(path: str | os.PathLike[str], *, results: Mapping[str, Any], **page: Any) -> None:
    from ida_jax.report.page import write_report
    from ida_jax.report.tables import write_tables

    write_report(path, results=results, **page)
    write_tables(Path(path).parent, results)


def _curves(evaluated: Mapping[str, Evaluation]) -> dict[str, Figure]:
    """Each variant's curves, by caption."""
    from ida_jax.report.rate_plots import (
        det_figure,
        distractors_figure,
        roc_figure,
        tpir_figure,
    )

    figures = {}
    for variant, (result, curves, _) in evaluated.items():
        keys = {key for method in result.values() for key in method}
        if curves and "tpir@fpir" in keys:
            figures[f"TPIR against FPIR, {variant}"] = tpir_figure(curves, figures=result)
        elif curves:
            figures[f"ROC, {variant}"] = roc_figure(curves, figures=result)
            figures[f"DET, {variant}"] = det_figure(curves)
        if "rank1@distractors" in keys:
            figures[f"Rank-1 against distractors, {variant}"] = distractors_figure(result)
    return figures


def _densities(groups: Groups, caption: str) -> dict[str, Figure]:
    """No figure where no face has a finite log F."""
    from ida_jax.report.density_plots import log_density_figure

    if not np.isfinite(groups.log_density).any():
        return {}
    return {caption: log_density_figure(*groups)}


def _with_notes(results: Mapping[str, Any], evaluated: Mapping[str, Evaluation]) -> dict[str, Any]:
    return {**results, "notes": {variant: result.notes for variant, result in evaluated.items()}}


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
