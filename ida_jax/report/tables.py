"""Tables of `results.json` for the terminal, for Markdown and for LaTeX.

What `results` holds, and what the marks mean: `ida_jax.report.cells`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ida_jax.common.files import written_whole
from ida_jax.report.cells import (
    FEW,
    GAIN,
    LOSS,
    TIED,
    Cell,
    Column,
    ProtocolTable,
    legend,
    protocol_tables,
    ssr_note,
)
from ida_jax.report.group_tables import group_markdown, group_text

_TERMINAL_WIDTH = 120
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "±": r"$\pm$", "−": "$-$", "τ": r"$\tau$", "²": r"$^2$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
_DAGGER = r"$^\dagger$"
_LATEX_CHANGES = {"": "", GAIN: r"$^\uparrow$", LOSS: r"$^\downarrow$", TIED: r"$^\approx$"}


def write_tables(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes results.md and results.tex into a folder, each whole; existing ones are replaced."""
    for name, table in (("results.md", markdown_table), ("results.tex", latex_table)):
        with written_whole(Path(folder) / name) as temporary:
            temporary.write_text(table(results) + "\n", encoding="utf-8")


def results_table(results: Mapping[str, Any]) -> str:
    """All protocols for the terminal, the best of a column marked by a star.

    An interval stands below its figure. Columns that do not fit 120 characters go below the others.
    """
    tables = protocol_tables(results)
    parts = ["\n".join([t.name, *_terminal_lines(t), *t.notes]) for t in tables]
    if note := ssr_note(results):
        parts.append(note)
    marks = [f"{mark} {meaning}" for mark, meaning in legend(tables)]
    cells = [cell for table in tables for column in table.columns for cell in column.cells]
    if any(cell.best for cell in cells):
        marks.insert(0, "* best of its column")
    if any(cell.interval for cell in cells):
        marks.append("in brackets: 95 % intervals")
    if marks:
        parts.append("\n".join(marks))
    if groups := group_text(results):
        parts.append(groups)
    return "\n\n".join(parts)


def _terminal_lines(table: ProtocolTable) -> list[str]:
    left = max(map(len, ("Method", *table.methods)))
    columns = [_terminal_column(column) for column in table.columns]
    blocks: list[list[list[str]]] = [[]]
    room = _TERMINAL_WIDTH - left
    for column in columns:
        width = 2 + len(column[0])
        if blocks[-1] and width > room - sum(2 + len(c[0]) for c in blocks[-1]):
            blocks.append([])
        blocks[-1].append(column)
    names = ["Method", ""] + [line for name in table.methods for line in (name, "")]
    lines = []
    for block in blocks:
        rows = [
            "  ".join([name.ljust(left), *(column[i] for column in block)]).rstrip()
            for i, name in enumerate(names)
        ]
        rows = [row for row in rows if row]  # no counts, no intervals: no line for them
        head = 1 + any(column[1].strip() for column in block)
        rule = "─" * max(map(len, rows))
        lines += [rule, *rows[:head], rule, *rows[head:]]
    return [*lines, rule]


def _terminal_column(column: Column) -> list[str]:
    """Title, basis, and two lines per method, all of one width.

    The figures end at the same place, whatever marks follow them.
    """
    marks = ["*" * c.best + TIED * c.tied + c.change + FEW * c.few for c in column.cells]
    behind = max(map(len, marks))
    lines = [column.title + " " * behind, column.basis + " " * behind]
    for cell, mark in zip(column.cells, marks, strict=True):
        count = f" ({cell.count})" if cell.count else ""
        lines.append(cell.text + count + mark.ljust(behind))
        lines.append(f"[{cell.interval}]" + " " * max(behind - 1, 0) if cell.interval else "")
    width = max(map(len, lines))
    return [line.rjust(width) for line in lines]


def markdown_table(results: Mapping[str, Any]) -> str:
    """All protocols as GitHub Markdown, the best of a column in bold, intervals in brackets."""
    tables = protocol_tables(results)
    parts = []
    for table in tables:
        titles = [", ".join(filter(None, (c.title, c.basis))) for c in table.columns]
        rows = [["Method", *titles], ["---", *["---:"] * len(titles)]]
        for i, name in enumerate(table.methods):
            rows.append([name, *(_markdown_cell(column.cells[i]) for column in table.columns)])
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
        parts.append("\n".join([f"### {table.name}", "", *lines]))
        parts += [*table.notes, *table.remarks]
    if note := ssr_note(results):
        parts.append(note)
    if marks := legend(tables):
        parts.append("; ".join(f"{mark} {meaning}" for mark, meaning in marks) + ".")
    if any(cell.interval for t in tables for column in t.columns for cell in column.cells):
        parts.append("In brackets: 95 % intervals.")
    parts += group_markdown(results)
    return "\n\n".join(parts)


def _markdown_cell(cell: Cell) -> str:
    value = f"**{cell.text}**" if cell.best else cell.text
    parts = [
        " ".join(filter(None, (value, TIED * cell.tied + cell.change))) + FEW * cell.few,
        f"[{cell.interval}]" if cell.interval else "",
        f"({cell.count})" if cell.count else "",
    ]
    return " ".join(filter(None, parts))


def latex_table(results: Mapping[str, Any]) -> str:
    """All protocols as LaTeX, for a document with the packages booktabs and xcolor."""
    parts = [r"% needs \usepackage{booktabs} and \usepackage{xcolor}"]
    tables = protocol_tables(results)
    parts += [_latex_protocol(table) for table in tables if table.columns]
    if note := ssr_note(results):
        parts.append(_escaped(note))
    return "\n\n".join(parts)


def _latex_protocol(table: ProtocolTable) -> str:
    head = [["Method", *(_latex_title(column.title) for column in table.columns)]]
    if any(column.basis for column in table.columns):
        head.append(["", *(_small(column.basis) for column in table.columns)])
    rows = []
    for i, name in enumerate(table.methods):
        cells = [column.cells[i] for column in table.columns]
        rows.append([_escaped(name), *map(_latex_cell, cells)])
        if any(cell.interval for cell in cells):
            rows.append(["", *(_small(cell.interval) for cell in cells)])
    caption = [f"{_escaped(table.name)}.", *map(_escaped, (*table.notes, *table.remarks))]
    caption += [
        f"{_LATEX_CHANGES.get(mark, _DAGGER)} {_escaped(meaning)}."
        for mark, meaning in legend((table,))
    ]
    columns = r"\begin{tabular}{l" + "r" * len(table.columns) + "}"
    above = [r"\begin{table}", r"\centering", r"\caption{" + " ".join(caption) + "}", columns]
    rules = [r"\toprule", *_latex_rows(head), r"\midrule", *_latex_rows(rows), r"\bottomrule"]
    return "\n".join([*above, *rules, r"\end{tabular}", r"\end{table}"])


def _latex_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    return [" & ".join(row).rstrip() + r" \\" for row in rows]


def _latex_title(title: str) -> str:
    return re.sub(r"@([\d.]*)e(-?\d+)", _power, _escaped(title))


def _power(match: re.Match) -> str:
    mantissa, exponent = match.groups()
    factor = "" if mantissa == "1" else rf"{mantissa}\cdot"
    return f"@${factor}10^{{{exponent}}}$"


def _latex_cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    if cell.best:
        text = rf"\textbf{{{text}}}"
    if cell.count:
        text += f" {_small(f'({cell.count})')}"
    if cell.few:
        text = rf"\textcolor{{gray}}{{{text}}}{_DAGGER}"
    return text + _LATEX_CHANGES[TIED * cell.tied] + _LATEX_CHANGES[cell.change]


def _small(text: str) -> str:
    return rf"{{\scriptsize {_escaped(text)}}}" if text else ""


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
