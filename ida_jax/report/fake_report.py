"""The report beside a fake-db: what was dropped and why, and how close it is to the training set.

Similarities to training faces are reported; their images are never shown, nor those of generated
faces that were dropped for being too near one: they may show a person who exists.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.anchors.candidates import CandidateFaces
from ida_jax.anchors.fake import FakeReport
from ida_jax.anchors.fake_rules import DUPLICATE, IMPLAUSIBLE, KEPT, NEAR_TRAINING, UNREADABLE
from ida_jax.common.files import json_text, written_whole
from ida_jax.data.contact_sheet import contact_sheet
from ida_jax.report.page import (
    code_entries,
    definitions,
    document,
    drawing,
    html_table,
    jpeg,
    picture,
    png_of,
)

_EDGES = np.linspace(-1, 1, 101)
_COLUMNS = 8
_SHOWN = {KEPT: 64, IMPLAUSIBLE: 16, DUPLICATE: 16}
_NEAREST = 8
_TOGETHER = 64  # faces that a generator makes at once


def write_fake_report(
    path: str | os.PathLike[str], report: FakeReport, candidates: CandidateFaces
) -> None:
    """Writes the page, and everything in it and more as JSON under the same name.

    Args:
      path: the HTML file; .json in its place is the other.
    """
    path = Path(path)
    page = _page(report, candidates)
    with written_whole(path.with_suffix(".json")) as temporary:
        temporary.write_text(json_text(fake_json(report, candidates)), encoding="utf-8")
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def fake_json(report: FakeReport, candidates: CandidateFaces) -> dict[str, Any]:
    """The provenance, histograms of the nearest training faces' cosines, and who was dropped."""
    cosines = {
        "candidates": report.nearest,
        "kept": report.nearest[report.numbers(KEPT)],
        "strangers": report.strangers,
    }
    counts = {
        name: np.histogram(values[np.isfinite(values)], _EDGES)[0]
        for name, values in cosines.items()
    }
    unreadable = report.numbers(UNREADABLE)
    return {
        **report.provenance,
        "warnings": report.warnings,
        "nearest_training_histogram": {"edges": _EDGES.round(2), **counts},
        "anchors": report.numbers(KEPT),
        "unreadable": [candidates.names[i] for i in unreadable] if candidates.names else unreadable,
        "implausible": report.numbers(IMPLAUSIBLE),
        "near_training": report.numbers(NEAR_TRAINING),
        "duplicate": report.numbers(DUPLICATE),
    }


def _page(report: FakeReport, candidates: CandidateFaces) -> str:
    title = f"Fake-db: {report.provenance['kept']:,} generated anchors"
    warnings = "".join(
        f'<p class="card"><strong>{html.escape(warning)}</strong></p>'
        for warning in report.warnings
    )
    return document(
        title,
        warnings,
        _choice(report.provenance),
        _privacy(report),
        _faces(report, candidates),
        _origin(report.provenance),
    )


def _choice(described: Mapping[str, Any]) -> str:
    """The table of counts, in the order of the rules."""
    drawn, dropped, cosines = described["drawn"], described["dropped"], described["thresholds"]

    def rule(text: str, key: str) -> str:
        return "not checked" if cosines[key] is None else text.format(cosines[key])

    rows = [
        ("drawn", drawn, ""),
        ("unreadable", dropped["unreadable"], "cannot be decoded, or has no embedding"),
        ("implausible", dropped["implausible"],
         rule("mean cosine to the nearest training people below {:.3f}", "plausible_similarity")),
        ("too near a training face", dropped["near_training"],
         rule("cosine to the nearest of {:.3f} or more", "privacy_cosine")),
        ("near-duplicate", dropped["duplicate"],
         rule("cosine to an anchor already kept of {:.3f} or more", "duplicate_cosine")),
        ("kept", described["kept"], ""),
    ]  # fmt: skip
    cells = (
        (
            name,
            f"<td>{count:,}</td><td>{100 * count / drawn:.1f} %</td>"
            f'<td style="text-align: left">{html.escape(why)}</td>',
        )
        for name, count, why in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Faces", "Count", "Share"))
    head += '<th scope="col" style="text-align: left">Rule</th>'
    return (
        f'<h2>Choice</h2>\n<section class="card">{html_table(head, cells)}'
        '<p class="soft">A face is counted under the first rule that drops it.</p></section>'
    )


def _privacy(report: FakeReport) -> str:
    described = report.provenance
    if described["training"] is None:
        return "<h2>Privacy</h2>\n<p>Not checked: there were no training faces to compare with.</p>"
    from ida_jax.report.density_plots import privacy_figure

    figure = privacy_figure(
        report.nearest, report.strangers, described["thresholds"]["privacy_cosine"]
    )
    quantiles = described["nearest_training_cosine"]
    head = '<th scope="col"></th>'
    head += "".join(f'<th scope="col">{level}</th>' for level in quantiles["kept"])
    named = {
        "all faces drawn": "candidates",
        "anchors": "kept",
        "training people, to others": "strangers",
    }
    rows = (
        (name, "".join(f"<td>{cosine:.3f}</td>" for cosine in quantiles[key].values()))
        for name, key in named.items()
    )
    training = described["training"]
    return (
        f"<h2>Privacy</h2>\n<p>Compared with {training['faces']:,} faces of "
        f"{training['people']:,} people, {html.escape(training['name'])}. Their images are "
        "private, and are not shown.</p>\n"
        f"{drawing('Cosine to the nearest training face', png_of(figure), figure)}\n"
        '<section class="card"><h3>Cosine to the nearest training face, quantiles</h3>'
        f"{html_table(head, rows)}</section>"
    )


def _faces(report: FakeReport, candidates: CandidateFaces) -> str:
    kept, nearest = report.numbers(KEPT), report.nearest[report.numbers(KEPT)]
    parts = ["<h2>Faces</h2>", _sheet(candidates, kept[: _SHOWN[KEPT]], "The first anchors")]
    if report.strangers.size:
        order = np.argsort(-nearest, kind="stable")[:_NEAREST]
        cosines = ", ".join(f"{cosine:.3f}" for cosine in nearest[order])
        note = f"Cosines: {cosines}. The training faces are private, and are not shown."
        caption = "The anchors nearest to a training face"
        parts.append(_sheet(candidates, kept[order], caption, note))
    dropped = {
        IMPLAUSIBLE: "Dropped as implausible, the first",
        DUPLICATE: "Dropped as near-duplicates of an anchor, the first",
    }
    for verdict, caption in dropped.items():
        if (numbers := report.numbers(verdict)).size:
            parts.append(_sheet(candidates, numbers[: _SHOWN[verdict]], caption))
    if count := report.numbers(NEAR_TRAINING).size:
        parts.append(
            f'<p class="soft">The {count:,} that were dropped as too near a training face are not '
            "shown: they may show a person who exists. Their numbers are in the JSON file.</p>"
        )
    return "\n".join(parts)


def _sheet(candidates: CandidateFaces, numbers: np.ndarray, caption: str, note: str = "") -> str:
    images = _drawn(candidates, numbers)
    sheet = jpeg(contact_sheet(images, columns=min(_COLUMNS, len(images))), side=2048)
    return picture(caption, sheet, note, kind="jpeg")


def _drawn(candidates: CandidateFaces, numbers: np.ndarray) -> Sequence[np.ndarray]:
    """The candidates of these numbers, neighbours drawn together."""
    drawn = {}
    for block, members in groupby(sorted(numbers.tolist()), lambda number: number // _TOGETHER):
        first, count = block * _TOGETHER, _TOGETHER
        if candidates.available is not None:
            count = min(count, candidates.available - first)
        images = candidates.draw(first, count)
        drawn |= {number: images[number - first] for number in members}
    return [drawn[number] for number in numbers.tolist()]


def _origin(described: Mapping[str, Any]) -> str:
    run = described["run"]
    entries = {
        **{f"Candidates: {key}": value for key, value in described["candidates"].items()},
        "Model": described["model"],
        "Mirrored too": "yes" if described["flip"] else "no",
        "Aligned to the training people": "yes" if described["aligned"] else "no",
        **{f"Training faces: {key}": value for key, value in (described["training"] or {}).items()},
        **{key.capitalize(): value for key, value in run.items()},
    }
    listed = code_entries((name, _text(value)) for name, value in entries.items())
    return definitions("Origin", listed)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return str(value)
