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

from ida_jax.errors import UserError
from ida_jax.files import written_whole
from ida_jax.report.plots import DPI
from ida_jax.report.tables import ProtocolTable, in_order, method_name, protocol_tables, ssr_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXPLANATIONS = {
    "cosine": "The inner product ⟨f₁, f₂⟩ of the two faces’ unit embeddings, and nothing else.",
    "ida_r": "The cosine, set against how crowded each face’s surroundings are with other people: "
    '<span class="formula">DAO(f₁, f₂) = e<sup>τ⟨f₁,f₂⟩</sup> · (F(f₁) + F(f₂))</span>'
    '<span class="formula">F(f) = 1 / (e<sup>τs₁</sup> + … + e<sup>τsₖ</sup>)</span>'
    "where s₁ … sₖ are the inner products of f with its support set: the k nearest of many anchor "
    "faces, found by search.",
    "ida_r_fallback": "IDA-R, except that faces which the anchors do not cover get one constant F, "
    "so that their pairs rank by their cosine. Ours, not the paper’s.",
    "ida_l": "The same DAO, with F predicted from the face’s own embedding by a small network (the "
    "SSR module), so that scoring needs no anchors.",
    "pfe": "Probabilistic face embeddings: each embedding comes with an uncertainty for each "
    "dimension, and the score is the likelihood that both are of one person.",
    "z_norm": "The cosine, less the mean and over the deviation of the first face’s scores with "
    "all anchors (the cohort).",
    "t_norm": "The same with the second face’s cohort scores.",
    "s_norm": "The cosine, standardised by mean and deviation of each face’s scores with all "
    "anchors (the cohort), then averaged over the two faces.",
    "as_norm": "The cosine, standardised by mean and deviation of each face’s highest cohort "
    "scores, then averaged over the two faces.",
    "csn": "A logistic regression on the cosine and on the shape of both faces’ sorted highest "
    "cohort scores, trained on pairs of the training set.",
}
_READING_THE_TABLE = (
    "TAR@f is the share of genuine pairs accepted when at most the share f of impostor pairs is; "
    "in parentheses stands the number of false accepts that this rests on: with only a few, a "
    "difference means little. EER is the rate at which false accepts and false rejects are equally "
    "frequent. Accuracy is the mean over folds ± their deviation, each fold scored with the "
    "threshold that is best on the others. The best value of a column is bold."
)
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a;
  --line: #dfe3e8; --best: #0a5fa8; --mark: #e8f2fb; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1e2329; --ink: #e6e9ed;
  --soft: #a2abb5; --line: #343b44; --best: #7cc0ff; --mark: #1b3550; } }
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
td strong { color: var(--best); background: var(--mark); border-radius: 4px; padding: .1rem .35rem;
  margin-right: -.35rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1.4rem; }
figure h3 { margin: 0 0 .5rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.plot { background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: .9rem; }
figcaption { margin-top: .5rem; font-size: .925rem; }
summary { cursor: pointer; font-weight: 600; } details dl { margin-top: .9rem; }
sup, sub { line-height: 0; font-size: .75em; }
.formula { display: block; margin: .3rem 0; color: var(--ink); font-size: 1.1em;
  font-family: Cambria, Georgia, serif; overflow-x: auto; white-space: nowrap; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .6rem; } main { padding-top: 1.5rem; }
  .plot { overflow-x: auto; } .plot img { max-width: 40rem; } }
@media print { body { background: none; } .card, .plot { break-inside: avoid; } }
"""


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    results: Mapping[str, Any],
    figures: Mapping[str, Figure],
    contact_sheet: np.ndarray | None,
    settings: Mapping[str, Any],
) -> None:
    """Writes the report, and each picture as a PNG beside it.

    The page refers to nothing outside itself. A picture's file is named after its key: "ROC, LFW"
    becomes `roc-lfw.png`; the faces are `contact_sheet.png`. Every file appears whole or not at
    all, the page last; existing ones are replaced. The folder is made where it is missing.

    Args:
      path: the HTML file.
      title: the page's heading.
      results: the content of `results.json`; `ida_jax.report.tables` says which keys are shown.
      figures: figures by caption. A figure's label says how to read it, where it has one.
      contact_sheet: uint8 [H, W, 3] RGB, one image of many faces; None for none.
      settings: what the run was set to; mappings inside it are shown as dotted keys.

    Raises:
      UserError: captions that give no file name or the same one, a contact sheet of another form,
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
    sheet = None if contact_sheet is None else _png_of_image(contact_sheet)
    pictures = [
        # Every figure's inch is equally wide on the page, so that all letters are of one size.
        _picture(caption, pngs[caption], figure.get_label(), inches=figure.get_figwidth())
        for caption, figure in figures.items()
    ]
    faces = "" if sheet is None else _faces(sheet)
    page = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>{html.escape(title)}</h1>",
            _fingerprint(results),
            _results(results),
            _methods(results),
            "<h2>Figures</h2>" if pictures else "",
            *pictures,
            faces,
            _settings(settings),
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

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"the contact sheet is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]"
        )
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _picture(caption: str, png: bytes, reading: str, *, inches: float) -> str:
    text = f"<figcaption>{html.escape(reading)}</figcaption>" if reading else ""
    image = _image(png, alt=caption, style=f' style="width: {6.2 * inches:.1f}rem"')
    return f"<figure><h3>{html.escape(caption)}</h3>{image}{text}</figure>"


def _faces(png: bytes) -> str:
    reading = "A sample of the face crops behind the figures."
    image = _image(png, alt="Faces")
    return f"<h2>Faces</h2>\n<figure>{image}<figcaption>{reading}</figcaption></figure>"


def _image(png: bytes, *, alt: str, style: str = "") -> str:
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<div class="plot"><img alt="{html.escape(alt)}"{style} src="{source}"></div>'


def _fingerprint(results: Mapping[str, Any]) -> str:
    fingerprint = results.get("model", {}).get("fingerprint")
    if fingerprint is None:
        return ""
    return f'<p class="soft">Model <code>{html.escape(str(fingerprint))}</code></p>'


def _results(results: Mapping[str, Any]) -> str:
    tables = "\n".join(_table(table) for table in protocol_tables(results))
    note = ssr_note(results)
    if not tables and not note:
        return ""
    ssr = f'<p class="card">{html.escape(note)}</p>' if note else ""
    reading = f'<p class="soft">{_READING_THE_TABLE}</p>' if tables else ""
    return f"<h2>Results</h2>\n{tables}\n{ssr}\n{reading}"


def _table(table: ProtocolTable) -> str:
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in ("Method", *table.columns))
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(
            f"<td><strong>{html.escape(cell.text)}</strong></td>"
            if cell.best
            else f"<td>{html.escape(cell.text)}</td>"
            for cell in cells
        )
        + "</tr>"
        for name, cells in table.rows
    )
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in table.notes)
    return (
        f'<section class="card"><h3>{html.escape(table.name)}</h3><div class="wide"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{notes}</section>"
    )


def _methods(results: Mapping[str, Any]) -> str:
    present = {m: True for methods in results.get("protocols", {}).values() for m in methods}
    entries = "\n".join(
        f"<dt>{html.escape(method_name(method))}</dt><dd>{_EXPLANATIONS[method]}</dd>"
        for method in in_order(present)
        if method in _EXPLANATIONS
    )
    return f'<h2>Methods</h2>\n<dl class="card">\n{entries}\n</dl>' if entries else ""


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
