"""The one writer of results.json and report.html."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ida_jax.common.files import json_text, written_whole
from ida_jax.metrics.evaluation import Evaluation


def figures_and_notes(evaluated: Mapping[str, Evaluation]) -> dict[str, Any]:
    """{"protocols": {variant: figures}, "notes": {variant: its notes, if any}} of results.json."""
    return {
        "protocols": {variant: of.figures for variant, of in evaluated.items()},
        "notes": {variant: list(of.notes) for variant, of in evaluated.items() if of.notes},
    }


def write_results(
    folder: Path,
    results: Mapping[str, Any],
    write_report: Callable[..., None],
    *,
    settings: Mapping[str, Any],
    **page: Any,
) -> None:
    """Writes report.html with its tables and pictures, and then results.json, which marks the end.

    Args:
      folder: an existing one.
      results: the content of results.json, with "provenance".
      write_report: `write_run_report` or `write_protocol_report` of `ida_jax.report.run_report`.
      settings: what was set, for the report.
      **page: all else that the report is of.
    """
    write_report(
        folder / "report.html",
        settings={**settings, **results["provenance"]},
        results=results,
        **page,
    )
    with written_whole(folder / "results.json") as temporary:
        temporary.write_text(json_text(results), encoding="utf-8")
