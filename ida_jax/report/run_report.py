"""The report of a run, from what its evaluation computed.

N faces.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.data.contact_sheet import contact_sheet
from ida_jax.data.dataset import FaceDataset
from ida_jax.protocols.roc import SplitScores, roc_curve

_SHEET_IDENTITIES = 8
_SHEET_COLUMNS = 8


def write_run_report(
    path: str | Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    scores: Mapping[str, SplitScores],
    log_density: np.ndarray,
    dataset: FaceDataset,
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Writes DIR/report.html and its pictures.

    Args:
      path: the HTML file.
      title: the heading.
      settings: what the run was set to, and the versions that it ran with.
      results: the content of results.json.
      scores: every method's genuine and impostor scores, ascending.
      log_density: float32 [N], the searched log F of the evaluation's faces.
      dataset: the evaluation's faces.
      metrics: the records of metrics.jsonl.
    """
    from ida_jax.report import plots
    from ida_jax.report.page import write_report

    figures = {
        "ROC": plots.roc_figure({name: roc_curve(*split) for name, split in scores.items()}),
        "Scores before and after": plots.histogram_figure(scores),
    }
    domains, names = dataset.domains, dataset.domain_names
    if domains is None:
        domains, names = np.zeros(len(log_density), np.int32), ("all faces",)
    figures["log F by domain"] = plots.log_density_figure(log_density, domains, names)
    for stage, caption in (("train", "Training the backbone"), ("ssr", "Training the SSR module")):
        if records := [record for record in metrics if record["stage"] == stage]:
            figures[caption] = plots.training_figure(records)
    write_report(
        path,
        title=title,
        results=results,
        figures=figures,
        contact_sheet=_sheet(dataset),
        settings=settings,
    )


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
