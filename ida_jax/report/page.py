"""A page that opens offline: its style, scripts and pictures inside; the parts that pages share."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.report.style import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def document(title: str, *parts: str) -> str:
    """A whole page in the reports' style."""
    style = _beside("page.css")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
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
    return f"<script>\n{_beside(name)}</script>"


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


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
    image = image_tag(content, alt=caption, kind=kind, style=style)
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


def image_tag(content: bytes, *, alt: str, kind: str, style: str = "") -> str:
    source = f"data:image/{kind};base64," + base64.b64encode(content).decode()
    return f'<div class="plot"><img alt="{html.escape(alt)}"{style} src="{source}"></div>'
