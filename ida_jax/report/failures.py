"""The pairs to look at: their data, controls, and a table of the first rows; the script shows more.

Without script the table of the first rows stands there alone.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError, printable
from ida_jax.metrics.decisions import Failure
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.protocols.failures import MOST
from ida_jax.report.page import data_script, html_table, jpeg, script
from ida_jax.report.style import MISSING, in_order, method_name
from ida_jax.rescoring.method_table import HEADLINE

# The image of the face of a name.
ImageOf = Callable[[str], np.ndarray]

_MOST_LETTERS = 60
_MOST_IMAGES = 200
_IMAGE_SIDE = 64  # pixels
_FIRST = 5  # rows of a kind that stand there without script
_KINDS = {
    ("worst", False): ("worst, impostor", "Worst: impostors of the highest scores"),
    ("worst", True): ("worst, genuine", "Worst: genuine pairs of the lowest scores"),
    ("corrected", True): ("✓ corrected, genuine", "Corrected: genuine pairs the cosine rejects"),
    ("corrected", False): ("✓ corrected, impostor", "Corrected: impostors the cosine accepts"),
    ("broken", True): ("✗ broken, genuine", "Broken: genuine pairs the cosine accepts"),
    ("broken", False): ("✗ broken, impostor", "Broken: impostors the cosine rejects"),
}
# Columns that are there where any pair has the number: title and text.
_COLUMNS: tuple[tuple[str, Callable[[Failure], float | None], Callable[[float], str]], ...] = (
    ("Cosine", lambda pair: pair.cosine, "{:.4f}".format),
    ("log F₁", lambda pair: pair.log_density and pair.log_density[0], "{:.4f}".format),
    ("log F₂", lambda pair: pair.log_density and pair.log_density[1], "{:.4f}".format),
    ("Score", lambda pair: pair.score, "{:.4f}".format),
    ("Probability", lambda pair: pair.probability, lambda share: f"{100 * share:.2f} %"),
)


class _Row(NamedTuple):
    """A pair, its variant, and its place among those of its method and kind, the worst first."""

    variant: str
    pair: Failure
    place: int


def failure_section(
    evaluated: Mapping[str, Evaluation],
    images: ImageOf | None = None,
    *,
    method: str = HEADLINE,
) -> str:
    """The section's HTML; "" where no variant has pairs to look at.

    Args:
      evaluated: {variant: its evaluation}.
      images: the faces' by name; at most 200 are put into the page, small.
      method: the one that is shown first, where it is there.
    """
    rows = _rows(evaluated)
    if not rows:
        return ""
    first = rows[0].variant
    methods = list(in_order({row.pair.method: True for row in rows}))
    if not any(row.variant == first and row.pair.method == method for row in rows):
        method = next(row.pair.method for row in rows if row.variant == first)
    filters = {
        "Protocol": (list(dict.fromkeys(row.variant for row in rows)), first),
        "Method": (methods, method),
        "Kind": (list(_KINDS), ("worst", False)),
        "Group": (sorted({row.pair.group for row in rows}), None),
    }
    names = {name: i for i, name in enumerate(dict.fromkeys(n for r in rows for n in r.pair.names))}
    thumbnails, damaged = _thumbnails(rows, images, (first, method))
    columns = [column for column in _COLUMNS if any(column[1](r.pair) is not None for r in rows)]
    grouped = len(filters["Group"][0]) > 1
    shown = [
        row
        for kind in _KINDS
        for row in rows
        if row.variant == first
        and (row.pair.method, row.pair.kind, row.pair.genuine) == (method, *kind)
        and row.place < _FIRST
    ]
    data = {
        "kinds": [short for short, _ in _KINDS.values()],
        "groups": [_shown(name) for name in filters["Group"][0]] if grouped else [],
        "names": [_shown(name) for name in names],
        "images": {names[n]: src for n, src in thumbnails.items() if not _within(n, shown)},
        "rows": [
            [
                *(
                    listed.index(value)
                    for (listed, _), value in zip(
                        filters.values(),
                        (row.variant, row.pair.method, _kind(row.pair), row.pair.group),
                        strict=True,
                    )
                ),
                *(names[name] for name in row.pair.names),
                *_texts(row.pair, columns),
            ]
            for row in rows
        ],
    }
    return "\n".join(
        [
            '<section id="failures"><h2>Pairs to look at</h2>',
            *(f'<p class="soft">{text}</p>' for text in _readings(evaluated, thumbnails, damaged)),
            '<div class="card">',
            _controls(filters),
            f'<p class="soft" id="failures-count" aria-live="polite">{_title(method)}: the first '
            "pairs of each kind. The others are in results.json, and here with script.</p>",
            '<div class="scroll" tabindex="0" role="region" aria-label="The pairs">',
            html_table(_head(columns, grouped=grouped), _table(shown, columns, names, thumbnails)),
            f"</div></div></section>\n{data_script('pairs', data)}\n{script('failures.js')}",
        ]
    )


def _rows(evaluated: Mapping[str, Evaluation]) -> list[_Row]:
    """Every pair, those of a method and kind by descending score, with their places."""
    rows = []
    for variant, of in evaluated.items():
        totals = Counter((pair.method, _kind(pair)) for pair in of.failures.pairs)
        seen: Counter[Any] = Counter()
        for pair in of.failures.pairs:
            key = pair.method, _kind(pair)
            place = totals[key] - 1 - seen[key] if pair.genuine else seen[key]
            rows.append(_Row(variant, pair, place))
            seen[key] += 1
    return rows


def _kind(pair: Failure) -> tuple[str, bool]:
    return pair.kind, pair.genuine


def _within(name: str, rows: Sequence[_Row]) -> bool:
    return any(name in row.pair.names for row in rows)


def _readings(
    evaluated: Mapping[str, Evaluation], thumbnails: Mapping[str, str], damaged: int
) -> list[str]:
    said = (
        f"At most {MOST} of a kind, the worst first: look there for wrong labels, bad images and "
        "look-alikes."
    )
    reading = " ".join(dict.fromkeys(of.failures.reading for of in evaluated.values()))
    personal = "Names of people are personal data."
    if thumbnails:
        personal = (
            f"Names and the {len(thumbnails)} pictures of people in this file (at most "
            f"{_MOST_IMAGES}) are personal data: whoever gets the file gets them."
        )
    if damaged:
        personal += f" {damaged} {'image' if damaged == 1 else 'images'} could not be read."
    return [html.escape(f"{said} {reading}"), f"<strong>{personal}</strong>"]


def _controls(filters: Mapping[str, tuple[Sequence[Any], Any]]) -> str:
    """Hidden until the script shows them."""
    boxes = []
    for name, (values, chosen) in filters.items():
        options = [(i, _option(name, value), value == chosen) for i, value in enumerate(values)]
        if chosen is None:
            options.insert(0, ("", "all", True))
        hidden = " hidden" if len(values) < 2 and name in ("Protocol", "Group") else ""
        listed = "".join(
            f'<option value="{i}"{" selected" * on}>{text}</option>' for i, text, on in options
        )
        boxes.append(
            f'<label{hidden}><span>{name}</span><select id="failures-{name.lower()}">{listed}'
            "</select></label>"
        )
    order = '<option value="1">highest first</option><option value="-1">lowest first</option>'
    boxes.append(f'<label><span>Score</span><select id="failures-order">{order}</select></label>')
    return f'<div class="controls" hidden>{"".join(boxes)}</div>'


def _option(filter_name: str, value: Any) -> str:
    if filter_name == "Kind":
        return html.escape(_KINDS[value][1])
    return _title(value) if filter_name == "Method" else html.escape(_shown(value))


def _head(columns: Sequence[Any], *, grouped: bool) -> str:
    titles = ["Pair", "Kind", *["Group"] * grouped, *(title for title, _, _ in columns)]
    return "".join(f'<th scope="col">{title}</th>' for title in titles)


def _table(
    rows: Sequence[_Row],
    columns: Sequence[Any],
    names: Mapping[str, int],
    thumbnails: Mapping[str, str],
) -> list[tuple[str, str]]:
    grouped = any(row.pair.group for row in rows)
    table = []
    for _, pair, _ in rows:
        faces = "".join(
            f'<img data-face="{names[name]}" alt="" src="{thumbnails[name]}">'
            for name in pair.names
            if name in thumbnails
        )
        cells = [_KINDS[_kind(pair)][0], *[_shown(pair.group)] * grouped, *_texts(pair, columns)]
        table.append(
            (
                faces + "".join(f"<div>{html.escape(_shown(name))}</div>" for name in pair.names),
                "".join(f"<td>{html.escape(cell)}</td>" for cell in cells),
            )
        )
    return table


def _texts(pair: Failure, columns: Sequence[Any]) -> list[str]:
    values = [(number(pair), text) for _, number, text in columns]
    return [
        MISSING if value is None or value != value else text(value).replace("-", "−")
        for value, text in values
    ]


def _thumbnails(
    rows: Sequence[_Row], images: ImageOf | None, first: tuple[str, str]
) -> tuple[dict[str, str], int]:
    """{name: its image, as a URL}, of the rows shown first and then the worst of all.

    And how many images could not be read.
    """
    found: dict[str, str] = {}
    damaged: set[str] = set()
    if images is None:
        return found, 0

    def late(row: _Row) -> tuple[bool, int]:
        return (row.variant, row.pair.method) != first or row.place >= 2 * _FIRST, row.place

    for row in sorted(rows, key=late):
        new = {name for name in row.pair.names if name not in found and name not in damaged}
        if len(found) + len(new) > _MOST_IMAGES:
            break
        for name in new:
            try:
                content = jpeg(images(name), side=_IMAGE_SIDE)
            except UserError:
                damaged.add(name)
            else:
                found[name] = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    return found, len(damaged)


def _title(method: str) -> str:
    return html.escape(_shown(method_name(method)))


def _shown(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"
