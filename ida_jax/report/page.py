"""The report: one HTML file that opens offline, with its pictures inside and also beside it."""

from __future__ import annotations

import base64
import html
import io
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
    Cell,
    ProtocolTable,
    legend,
    protocol_tables,
    ssr_note,
)
from ida_jax.report.look import DPI
from ida_jax.report.names import in_order, method_name
from ida_jax.report.page_text import READINGS, STYLE
from ida_jax.report.pair_cards import jpeg
from ida_jax.rescoring.method_table import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is known of a run beside its options (`common.provenance`), and how the page calls it.
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
    FEW: '<sup title="fewer than 10 decide it">†</sup>',
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
) -> None:
    """Writes the report, and each picture as a PNG beside it.

    The page refers to nothing outside itself. A picture's file is named after its key: "ROC, LFW"
    becomes `roc-lfw.png`; the faces are `contact_sheet.png`. Every file appears whole or not at
    all, the page last; existing ones are replaced. The folder is made where it is missing.

    Args:
      path: the HTML file.
      title: the page's heading.
      results: the content of `results.json`; `ida_jax.report.cells` says which keys are shown.
      figures: figures by caption. A figure's label says how to read it, where it has one.
      settings: what the run was set to; mappings inside it are shown as dotted keys. Command,
        commit, hardware and versions stand apart.
      contact_sheet: uint8 [H, W, 3] RGB, one image of many faces; None for none.
      pairs: the section of pairs whose decision changed (`ida_jax.report.pair_cards`), as HTML.

    Raises:
      UserError: captions that give no file name or the same one, a malformed contact sheet,
        or a folder that cannot be written.
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
    pngs = {caption: _png_of_figure(figure) for caption, figure in figures.items()}
    pictures = [
        # Every figure's inch is equally wide on the page, so that all letters are of one size.
        _picture(caption, pngs[caption], figure.get_label(), inches=figure.get_figwidth())
        for caption, figure in figures.items()
    ]
    faces = "" if contact_sheet is None else _faces(contact_sheet)
    sheet = None if contact_sheet is None else _png_of_image(contact_sheet)
    page = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>{html.escape(title)}</h1>",
            _results(results),
            _methods(results),
            "<h2>Figures</h2>" if pictures else "",
            *pictures,
            pairs,
            faces,
            _origin(results, settings),
            _settings({key: value for key, value in settings.items() if key not in _ORIGIN}),
            "</main>\n</body>\n</html>\n",
        ]
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error
    for caption, png in pngs.items():
        _write(path.parent / files[caption], png)
    if sheet is not None:
        _write(path.parent / "contact_sheet.png", sheet)
    _write(path, page.encode())


def _file_name(caption: str) -> str:
    slug = re.sub(r"[^a-z0-9_]+", "-", caption.lower()).strip("-")
    if not slug:
        raise UserError(f"the figure {caption!r} has no letter or digit to name its PNG after")
    return f"{slug}.png"


def _png_of_figure(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the Software entry the same figure gives the same bytes under any matplotlib.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _png_of_image(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))[1].tobytes()


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _picture(caption: str, png: bytes, reading: str, *, inches: float) -> str:
    text = f"<figcaption>{html.escape(reading)}</figcaption>" if reading else ""
    image = _image(png, alt=caption, style=f' style="width: {6.2 * inches:.1f}rem"')
    return f"<figure><h3>{html.escape(caption)}</h3>{image}{text}</figure>"


def _faces(sheet: np.ndarray) -> str:
    reading = "A sample of the face crops behind the figures."
    # As JPEG: a sheet of photographs is a tenth of its PNG.
    image = _image(jpeg(sheet, side=2048), alt="Faces", kind="jpeg")
    return f"<h2>Faces</h2>\n<figure>{image}<figcaption>{reading}</figcaption></figure>"


def _image(content: bytes, *, alt: str, style: str = "", kind: str = "png") -> str:
    source = f"data:image/{kind};base64," + base64.b64encode(content).decode()
    return f'<div class="plot"><img alt="{html.escape(alt)}"{style} src="{source}"></div>'


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
        for start, sentence in READINGS.items()
        if any(title.startswith(start) for title in titles)
    ]
    reading = f'<p class="soft">{" ".join(sentences)}</p>' if sentences else ""
    reading += f'<ul class="soft legend">{marks}</ul>' if marks else ""
    return "\n".join(["<h2>Results</h2>", *map(_table, tables), ssr, reading])


def _table(table: ProtocolTable) -> str:
    head = "".join(
        f'<th scope="col">{html.escape(column.title)}'
        f"<small>{html.escape(column.basis)}</small></th>"
        for column in table.columns
    )
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(_cell(column.cells[i]) for column in table.columns)
        + "</tr>"
        for i, name in enumerate(table.methods)
    )
    notes = "".join(
        f'<p class="soft">{html.escape(note)}</p>' for note in (*table.notes, *table.remarks)
    )
    return (
        f'<section class="card"><h3>{html.escape(table.name)}</h3>'
        f'<div class="wide"><table class="results">\n<thead><tr><th scope="col">Method</th>{head}'
        f"</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{notes}</section>"
    )


def _cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    value = f"<strong>{text}</strong>" if cell.best else text
    mark = _MARKS.get(cell.change, "") + (_MARKS[FEW] if cell.few else "")
    below = [cell.interval, f"({cell.count})" if cell.count else ""]
    small = f"<small>{html.escape(' '.join(filter(None, below)))}</small>" if any(below) else ""
    few = " class=few" if cell.few else ""
    return f'<td{few}><span class="value">{value}{mark}</span>{small}</td>'


def _methods(results: Mapping[str, Any]) -> str:
    present = {m: True for methods in results.get("protocols", {}).values() for m in methods}
    entries = "\n".join(
        f"<dt>{html.escape(method_name(method))}</dt><dd>{METHODS[method].explanation}</dd>"
        for method in in_order(present)
        if method in METHODS
    )
    return f'<h2>Methods</h2>\n<dl class="card">\n{entries}\n</dl>' if entries else ""


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
    listed = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(str(value))}</code></dd>"
        for name, value in entries
    )
    return f'<h2>Origin</h2>\n<dl class="card">\n{listed}\n</dl>' if listed else ""


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
