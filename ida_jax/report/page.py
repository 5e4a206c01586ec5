"""The report: one HTML file that opens offline, with its pictures inside and also beside it.

The parts that other pages share (the document, pictures, tables, lists) are functions here.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
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
from ida_jax.report.style import DPI, in_order, method_name
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
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a;
  --line: #dfe3e8; --best: #0a5fa8; --mark: #e8f2fb; --few: #767d86; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1e2329; --ink: #e6e9ed;
  --soft: #a2abb5; --line: #343b44; --best: #7cc0ff; --mark: #1b3550;
  --few: #8b949e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0 0 .7rem; }
p { margin: .5rem 0; }
.soft, figcaption, dd { color: var(--soft); }
code { font: .875em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.25rem; margin: 0 0 1.1rem; }
.card > :last-child { margin-bottom: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 600; }
table.results { width: auto; min-width: min(100%, 26rem); }
table.results td, table.results th { vertical-align: top; padding: .45rem .6rem; }
table.results th:first-child { padding-left: 0; position: sticky; left: 0; z-index: 1;
  background: var(--card); }
table.results :is(td, th):last-child { padding-right: 1.7rem; }
td strong { color: var(--best); background: var(--mark); border-radius: 4px; padding: .1rem .3rem;
  margin-right: -.3rem; outline: 1.5px solid currentColor; outline-offset: -1px; }
td .value { position: relative; display: inline-block; }
td .mark, td sup { position: absolute; left: calc(100% + .15rem); color: var(--ink); }
td .mark { font-size: .7rem; left: calc(100% + .45rem); top: .18rem; } td sup { top: .7rem; }
td .mark.tied { top: .7rem; } td .mark + sup { left: calc(100% + 1.2rem); }
td small, th small { display: block; color: var(--soft); font-weight: 400; font-size: .76rem; }
h3 small { color: var(--soft); font-weight: 400; margin-left: .3rem; }
td.few { color: var(--few); } td.few strong { color: inherit; }
.legend { list-style: none; padding: 0; margin: .5rem 0; } .legend .mark { font-size: .8rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .9rem; }
.pair { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
.pair div { display: flex; gap: .3rem; justify-content: center; }
.pair img { width: 50%; max-width: 7rem; height: auto; border-radius: 4px; }
.pair .others { justify-content: space-between; margin-top: .4rem; }
.pair .others img { width: 2.1rem; margin: 0 .1rem; }
.pair figcaption { text-align: center; font-size: .8rem; line-height: 1.3; }
.pair table { font-size: .8rem; margin-top: .3rem; }
.pair th, .pair td { padding: .15rem .2rem; } .pair th { font-weight: 400; }
.changed.corrected { border-left: 4px solid #0072b2; }
.changed.broken { border-left: 4px dashed #d55e00; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1.4rem; }
figure h3 { margin: 0 0 .5rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.plot { background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: .9rem; }
figcaption { margin-top: .5rem; font-size: .925rem; }
#failures .controls { margin-bottom: .8rem; }
#failures tbody th { font-weight: 400; line-height: 1.35; white-space: normal; min-width: 13rem;
  overflow-wrap: anywhere; }
#failures tbody td { vertical-align: middle; }
#failures img { width: 3.5rem; height: 3.5rem; object-fit: cover; border-radius: 4px;
  margin: .1rem .3rem .1rem 0; }
#failures .scroll { max-height: 44rem; overflow: auto; } #failures .wide { overflow: visible; }
#failures thead th { position: sticky; top: 0; z-index: 2; background: var(--card); }
[hidden] { display: none !important; }
summary { cursor: pointer; font-weight: 600; } details dl { margin-top: .9rem; }
.controls { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: end; }
:is(#picker, #failures) label span { display: block; font-size: .85rem;
  font-weight: 600; color: var(--soft); }
:is(#picker, #failures) :is(select, button, input[type=text]) { font: inherit; color: inherit;
  max-width: 24rem; min-height: 2.2rem; padding: .2rem .55rem; border: 1px solid var(--soft);
  border-radius: 6px; background: var(--page); }
#picker button { font-size: .875rem; cursor: pointer; }
#picker .presets { display: flex; flex-wrap: wrap; gap: .3rem; }
#picker [aria-invalid=true] { border: 2px dashed var(--few); }
:is(#picker, #failures) :focus-visible { outline: 3px solid var(--best); outline-offset: 2px; }
#picker .slider { display: block; margin: 1rem 0; }
#picker .slider input { width: 100%; margin: .3rem 0; accent-color: var(--best); }
#picker svg { display: block; width: 100%; max-width: 46rem; margin: 1rem auto .5rem;
  font-size: 12px; }
#picker svg text { fill: var(--soft); } #picker .grid { stroke: var(--line); }
#picker path { fill: none; stroke-width: 2; } #picker .own { stroke: var(--best); }
#picker .base { stroke: var(--ink); } #picker path.base { stroke-dasharray: 6 4; }
#picker circle { fill: var(--card); stroke-width: 2; } #picker circle.own { fill: var(--best); }
#picker .at { stroke: var(--soft); stroke-dasharray: 2 3; }
#picker-groups:not(:empty) { margin-top: 1.2rem; }
#picker pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; margin: 0;
  padding: .7rem .8rem; background: var(--page); border: 1px solid var(--line);
  border-radius: 6px; }
sup, sub { line-height: 0; font-size: .75em; }
.formula { display: block; margin: .3rem 0; color: var(--ink); font-size: 1.1em;
  font-family: Cambria, Georgia, serif; overflow-x: auto; white-space: nowrap; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .6rem; } main { padding-top: 1.5rem; }
  .plot { overflow-x: auto; } .plot img { max-width: 40rem; }
  #failures tbody th { min-width: 8rem; } }
@media print { body { background: none; } #failures .scroll { max-height: none; }
  .card, .plot { break-inside: avoid; } }
"""


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


def document(title: str, *parts: str) -> str:
    """A whole page in the reports' style."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>{html.escape(title)}</h1>",
            *parts,
            "</main>\n</body>\n</html>\n",
        ]
    )


def data_script(identifier: str, data: Any) -> str:
    """An element with data for a script, which no name in them ends."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{identifier}">{text}</script>'


def script(name: str) -> str:
    """An element with one of the scripts beside this module."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return f"<script>\n{text}</script>"


def html_table(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of figures from its head's cells and its rows: (name, the other cells), all HTML."""
    body = "\n".join(f'<tr><th scope="row">{name}</th>{cells}</tr>' for name, cells in rows)
    return (
        '<div class="wide"><table class="results">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def definitions(title: str, entries: Iterable[tuple[str, str]]) -> str:
    """A section of (term, definition) entries, HTML; "" where there are none."""
    listed = "\n".join(f"<dt>{term}</dt><dd>{value}</dd>" for term, value in entries)
    return f'<h2>{title}</h2>\n<dl class="card">\n{listed}\n</dl>' if listed else ""


def code_entries(entries: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Entries of plain text for `definitions`, the values as code."""
    return [
        (html.escape(name), f"<code>{html.escape(str(value))}</code>") for name, value in entries
    ]


def picture(caption: str, content: bytes, note: str, *, kind: str, style: str = "") -> str:
    """A captioned image, its file inside; the note, where there is one, stands below."""
    below = f"<figcaption>{html.escape(note)}</figcaption>" if note else ""
    image = _image(content, alt=caption, kind=kind, style=style)
    return f"<figure><h3>{html.escape(caption)}</h3>{image}{below}</figure>"


def drawing(caption: str, content: bytes, figure: Figure) -> str:
    """The picture of a figure's `png_of`, its label below."""
    # Every figure's inch is equally wide on the page, so that all letters are of one size.
    style = f' style="width: {6.2 * figure.get_figwidth():.1f}rem"'
    return picture(caption, content, figure.get_label(), kind="png", style=style)


def png_of(figure: Figure) -> bytes:
    """A figure's PNG, the same bytes under any matplotlib: without the Software entry."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def jpeg(image: np.ndarray, *, side: int = 112) -> bytes:
    """uint8 [H, W, 3] RGB as JPEG, made smaller where a side exceeds `side` pixels."""
    import cv2

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"an image of the page is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]"
        )
    longest = max(image.shape[:2])
    if longest > side:
        height, width = (max(1, round(side * n / longest)) for n in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def _image(content: bytes, *, alt: str, kind: str, style: str = "") -> str:
    source = f"data:image/{kind};base64," + base64.b64encode(content).decode()
    return f'<div class="plot"><img alt="{html.escape(alt)}"{style} src="{source}"></div>'


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
    image = _image(jpeg(sheet, side=2048), alt="Faces", kind="jpeg")
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
