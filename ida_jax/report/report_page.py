"""The report: one HTML file that opens offline, with its pictures inside and also beside it."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.report.cells import (
    FEW,
    GAIN,
    LOSS,
    TIED,
    Cell,
    ProtocolTable,
    legend,
    protocol_tables,
    ssr_note,
)
from ida_jax.report.page import (
    code_entries,
    definitions,
    document,
    drawing,
    html_table,
    image_tag,
    jpeg,
    png_of,
    script,
)
from ida_jax.report.style import in_order, method_name
from ida_jax.rescoring.method_table import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is recorded of a run beside its options (`common.provenance`), and its name on the page.
_ORIGIN = {
    "command": "Command",
    "commit": "Commit",
    "devices": "Devices",
    "processor": "Processor",
    "versions": "Versions",
}
_MARKS = {
    GAIN: '<span class="mark" title="above cosine">▲</span>',
    LOSS: '<span class="mark" title="below cosine">▼</span>',
    TIED: '<span class="mark tied" title="may be the best as well">≈</span>',
    FEW: '<sup title="fewer than 10 decide it">†</sup>',
}
# How to read a table, by how the titles of the columns begin that a sentence is about.
_READINGS = {
    "TAR@": "TAR@f is the share of genuine pairs accepted when at most the share f of impostor "
    "pairs is; below the title stands how many false accepts that rests on.",
    "TPIR@": "TPIR@f is the share of searches that find the right person, at rank 1 and above the "
    "threshold, when at most the share f of searches for absent people raises an alarm.",
    "Rank-1@": "Rank-1@n is the share of probes whose mate is nearer than n other people’s faces; "
    "in parentheses, how many fail.",
    "EER": "EER is the rate at which false accepts and false rejects are equally frequent.",
    "Accuracy": "Accuracy is the mean over folds ± their deviation, each fold scored with the "
    "threshold that is best on the others.",
    "": "Small ranges are 95 % intervals. The best value of a column is bold and framed; a frame "
    "alone says nothing of chance; where methods are compared at once, ≈ marks those that may be "
    "as good.",
}


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    results: Mapping[str, Any],
    figures: Mapping[str, Figure],
    settings: Mapping[str, Any],
    contact_sheet: np.ndarray | None = None,
    pairs: str = "",
    groups: str = "",
    failures: str = "",
    picker: str = "",
) -> None:
    """Writes the report, and each picture as a PNG beside it.

    The page refers to nothing outside itself. A picture's file is named after its key: "ROC, LFW"
    becomes `roc-lfw.png`; the faces are `contact_sheet.png`. Every file appears whole or not at
    all, the page last; existing ones are replaced. The folder is made where it is missing.

    Args:
      results: the content of `results.json`; `ida_jax.report.cells` says which keys are shown.
      figures: figures by caption. A figure's label says how to read it, where it has one.
      settings: the run's settings; mappings inside it are shown as dotted keys. Command,
        commit, hardware and versions stand apart.
      contact_sheet: uint8 [H, W, 3] RGB, one image of many faces; None for none.
      pairs: the section of pairs whose decision changed (`ida_jax.report.pair_cards`), as HTML.
      groups: the section of figures by group (`ida_jax.report.group_tables`), as HTML.
      failures: the section of pairs to look at (`ida_jax.report.failures`), as HTML.
      picker: the section where a threshold is chosen (`ida_jax.report.picker`), as HTML.
    """
    path = Path(path)
    files = {caption: _file_name(caption) for caption in figures}
    names = ["contact_sheet.png", *files.values()]
    if len(set(names)) < len(names):
        raise UserError(
            f"figures named {', '.join(map(repr, figures))} give the same PNG twice: use captions "
            "that differ in letters or digits"
        )
    # All pictures are drawn before any is written: one that cannot be drawn changes no file.
    pngs = {caption: png_of(figure) for caption, figure in figures.items()}
    pictures = [drawing(caption, pngs[caption], figure) for caption, figure in figures.items()]
    faces = sheet = ""
    if contact_sheet is not None:
        faces, sheet = _faces(contact_sheet), _png_of_image(contact_sheet)
    page = document(
        title,
        script("page.js") if picker or failures else "",
        _verdict(results),
        _results(results),
        picker,
        groups,
        _methods(results),
        "<h2>Figures</h2>" if pictures else "",
        *pictures,
        failures,
        pairs,
        faces,
        _origin(results, settings),
        _settings({key: value for key, value in settings.items() if key not in _ORIGIN}),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error
    for caption, png in pngs.items():
        _write(path.parent / files[caption], png)
    if sheet:
        _write(path.parent / "contact_sheet.png", sheet)
    _write(path, page.encode())


def _file_name(caption: str) -> str:
    slug = re.sub(r"[^a-z0-9_]+", "-", caption.lower()).strip("-")
    if not slug:
        raise UserError(f"the figure {caption!r} has no letter or digit to name its PNG after")
    return f"{slug}.png"


def _png_of_image(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))[1].tobytes()


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _faces(sheet: np.ndarray) -> str:
    reading = "A sample of the face crops behind the figures."
    # As JPEG: a sheet of photographs is a tenth of its PNG.
    image = image_tag(jpeg(sheet, side=2048), alt="Faces", kind="jpeg")
    return f"<h2>Faces</h2>\n<figure>{image}<figcaption>{reading}</figcaption></figure>"


def _verdict(results: Mapping[str, Any]) -> str:
    """What a trial says in the end."""
    text = results.get("verdict", "")
    return f'<p class="card">{html.escape(text)}</p>' if text else ""


def _results(results: Mapping[str, Any]) -> str:
    tables = protocol_tables(results)
    note = ssr_note(results)
    if not tables and not note:
        return ""
    ssr = f'<p class="card">{html.escape(note)}</p>' if note else ""
    marks = "".join(
        f"<li>{_MARKS[mark]} {html.escape(meaning)}</li>" for mark, meaning in legend(tables)
    )
    titles = [column.title for table in tables for column in table.columns]
    sentences = [
        sentence
        for start, sentence in _READINGS.items()
        if any(title.startswith(start) for title in titles)
    ]
    reading = f'<p class="soft">{" ".join(sentences)}</p>' if sentences else ""
    reading += f'<ul class="soft legend">{marks}</ul>' if marks else ""
    return "\n".join(["<h2>Results</h2>", *map(_table, tables), ssr, reading])


def _table(table: ProtocolTable) -> str:
    head = '<th scope="col">Method</th>' + "".join(
        f'<th scope="col">{html.escape(column.title)}'
        f"<small>{html.escape(column.basis)}</small></th>"
        for column in table.columns
    )
    rows = (
        (html.escape(name), "".join(_cell(column.cells[i]) for column in table.columns))
        for i, name in enumerate(table.methods)
    )
    notes = "".join(
        f'<p class="soft">{html.escape(note)}</p>' for note in (*table.notes, *table.remarks)
    )
    return (
        f'<section class="card"><h3>{html.escape(table.name)}</h3>'
        f"{html_table(head, rows)}{notes}</section>"
    )


def _cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    value = f"<strong>{text}</strong>" if cell.best else text
    mark = _MARKS.get(cell.change, "") + _MARKS[TIED] * cell.tied + _MARKS[FEW] * cell.few
    below = [cell.interval, f"({cell.count})" if cell.count else ""]
    small = f"<small>{html.escape(' '.join(filter(None, below)))}</small>" if any(below) else ""
    few = " class=few" if cell.few else ""
    return f'<td{few}><span class="value">{value}{mark}</span>{small}</td>'


def _methods(results: Mapping[str, Any]) -> str:
    present = {m: True for methods in results.get("protocols", {}).values() for m in methods}
    return definitions(
        "Methods",
        (
            (html.escape(method_name(method)), METHODS[method].explanation)
            for method in in_order(present)
            if method in METHODS
        ),
    )


def _origin(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Where the figures come from: the model, the anchors, the code and the machine."""
    entries = []
    for name, key in (("Model", "model"), ("Anchors", "anchors")):
        for part, value in results.get(key, {}).items():
            shown = f"{value:,}" if isinstance(value, int) else value
            entries.append((f"{name}: {part.replace('_', ' ')}", shown))
    for key, name in _ORIGIN.items():
        value = settings.get(key)
        if isinstance(value, Mapping):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        if value:
            entries.append((name, value))
    return definitions("Origin", code_entries(entries))


def _settings(settings: Mapping[str, Any]) -> str:
    entries = "\n".join(
        f"<dt><code>{html.escape(key)}</code></dt><dd><code>{html.escape(str(value))}</code></dd>"
        for key, value in _flat(settings)
    )
    if not entries:
        return ""
    return (
        '<h2>Settings</h2>\n<details class="card"><summary>What the run was set to</summary>\n'
        f"<dl>\n{entries}\n</dl></details>"
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    entries = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            entries += _flat(value, f"{prefix}{key}.")
        else:
            entries.append((f"{prefix}{key}", value))
    return entries
