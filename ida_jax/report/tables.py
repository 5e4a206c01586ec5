"""Tables of `results.json`, for the terminal, for Markdown and (as cells) for the HTML page.

`results` is `{"protocols": {NAME: {METHOD: {"accuracy": 0.98, "accuracy_deviation": 0.004,
"tar@far": {"1e-05": 0.93}, "false_accepts": {"1e-05": 134}, "eer": 0.01, "genuine": 7070,
"impostor": 13484345}}}, "ssr": {"r2": 0.7, "rank_correlation": 0.8}}`, rates as fractions of 1.
Any key may be missing: its place shows "–", and a column that no method has is left out.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

METHOD_NAMES = {
    "cosine": "Cosine",
    "ida_r": "IDA-R",
    "ida_r_fallback": "IDA-R fallback",
    "ida_l": "IDA-L",
    "pfe": "PFE",
    "pfe_ida_r": "PFE & IDA-R",
    "pfe_ida_l": "PFE & IDA-L",
    "z_norm": "Z-norm",
    "t_norm": "T-norm",
    "s_norm": "S-norm",
    "as_norm": "AS-norm",
    "csn": "CSN",
}
MISSING = "–"


class Cell(NamedTuple):
    """A value as shown, and whether it is the best of its column."""

    text: str
    best: bool = False


class ProtocolTable(NamedTuple):
    """One protocol's table.

    Attributes:
      name: the protocol's.
      columns: the titles after "Method".
      rows: a method's display name and its cells, one for each column.
      notes: sentences to stand below: the number of pairs, and what the best method gains.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]


def method_name(method: str) -> str:
    """The display name of a method's key; an unknown key stands for itself."""
    return METHOD_NAMES.get(method, method)


def protocol_tables(results: Mapping[str, Any]) -> tuple[ProtocolTable, ...]:
    """The tables of all protocols, methods in METHOD_NAMES' order and unknown ones last.

    The best value of a column is marked where its methods show different values: the highest
    accuracy and TAR, the lowest EER; all that show the same figure share the mark.
    """
    return tuple(
        _protocol_table(name, in_order(methods))
        for name, methods in results.get("protocols", {}).items()
    )


def in_order(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries in METHOD_NAMES' order, unknown ones last in theirs."""
    place = {method: i for i, method in enumerate(METHOD_NAMES)}
    return dict(sorted(methods.items(), key=lambda item: place.get(item[0], len(place))))


def ssr_note(results: Mapping[str, Any]) -> str | None:
    """A sentence on how well the SSR module knows the searched densities; None without figures."""
    ssr = results.get("ssr", {})
    parts = [
        f"{label} {_number(ssr.get(key)):.3f}"
        for key, label in (("r2", "R²"), ("rank_correlation", "rank correlation"))
        if _number(ssr.get(key)) is not None
    ]
    return f"SSR against the searched density: {', '.join(parts)}." if parts else None


def far_name(far: float | str) -> str:
    """A FAR in short: 1e-5 for 1e-05, 1e-3 for 0.001."""
    mantissa, exponent = f"{float(far):.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def results_table(results: Mapping[str, Any]) -> str:
    """All protocols for the terminal, the best of a column marked by a star."""
    parts = []
    for table in protocol_tables(results):
        cells = [[cell.text + ("*" if cell.best else " ") for cell in row] for _, row in table.rows]
        names = ["Method", *(name for name, _ in table.rows)]
        columns = [
            [f"{title} ", *column] for title, *column in zip(table.columns, *cells, strict=True)
        ]
        widths = [max(map(len, column)) for column in columns]
        left = max(map(len, names))
        lines = [
            name.ljust(left) + "".join("  " + c.rjust(w) for c, w in zip(row, widths, strict=True))
            for name, *row in zip(names, *columns, strict=True)
        ]
        rule = "─" * max(map(len, lines))
        lines = [rule, lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:]), rule]
        if any(cell.best for _, row in table.rows for cell in row):
            lines.append("* best of its column; in parentheses, the false accepts behind a figure")
        parts.append("\n".join([table.name, *lines, *table.notes]))
    if note := ssr_note(results):
        parts.append(note)
    return "\n\n".join(parts)


def markdown_table(results: Mapping[str, Any]) -> str:
    """All protocols as GitHub Markdown, the best of a column in bold."""
    parts = []
    for table in protocol_tables(results):
        rows = [["Method", *table.columns], ["---", *["---:"] * len(table.columns)]]
        for name, cells in table.rows:
            rows.append([name, *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)])
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
        parts.append("\n".join([f"### {table.name}", "", *lines]))
        parts += table.notes
    if note := ssr_note(results):
        parts.append(note)
    return "\n\n".join(parts)


def _protocol_table(name: str, methods: Mapping[str, Mapping[str, Any]]) -> ProtocolTable:
    columns = [_column("Accuracy %", methods, lambda m: m.get("accuracy"), _accuracy, max)]
    for far in sorted({far for m in methods.values() for far in _by_far(m, "tar@far")})[::-1]:
        columns.append(
            _column(
                f"TAR@{far_name(far)} %",
                methods,
                lambda m, far=far: _by_far(m, "tar@far").get(far),
                lambda m, shown, far=far: shown + _in_parentheses(m, far),
                max,
            )
        )
    columns.append(_column("EER %", methods, lambda m: m.get("eer"), lambda m, shown: shown, min))
    columns = [column for column in columns if column is not None]
    return ProtocolTable(
        name=name,
        columns=tuple(title for title, _ in columns),
        rows=tuple(
            (method_name(method), tuple(cells[i] for _, cells in columns))
            for i, method in enumerate(methods)
        ),
        notes=tuple(note for note in (_pairs_note(methods), _gain_note(methods)) if note),
    )


def _column(
    title: str,
    methods: Mapping[str, Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], Any],
    text: Callable[[Mapping[str, Any], str], str],
    best: Callable[[list[str]], str],
) -> tuple[str, list[Cell]] | None:
    """Title and cells of one figure in percent; None where no method has it."""
    values = [_number(value(m)) for m in methods.values()]
    shown = [None if v is None else f"{100 * v:.2f}" for v in values]
    present = [s for s in shown if s is not None]
    if not present:
        return None
    # Compared as shown, so that of two equal figures not one alone is marked.
    winner = best(present, key=float) if len(set(present)) > 1 else None
    return title, [
        Cell(MISSING) if s is None else Cell(text(m, s), best=s == winner)
        for m, s in zip(methods.values(), shown, strict=True)
    ]


def _number(value: Any) -> float | None:
    """The value, or None where there is none that can be shown (missing, NaN, infinite)."""
    return float(value) if value is not None and math.isfinite(value) else None


def _by_far(method: Mapping[str, Any], key: str) -> dict[float, Any]:
    return {float(far): value for far, value in method.get(key, {}).items()}


def _accuracy(method: Mapping[str, Any], shown: str) -> str:
    deviation = _number(method.get("accuracy_deviation"))
    return shown if deviation is None else f"{shown} ± {100 * deviation:.2f}"


def _in_parentheses(method: Mapping[str, Any], far: float) -> str:
    count = _by_far(method, "false_accepts").get(far)
    return "" if count is None else f" ({count:,})"


def _pairs_note(methods: Mapping[str, Mapping[str, Any]]) -> str | None:
    counted = [m for m in methods.values() if "genuine" in m and "impostor" in m]
    counts = {(m["genuine"], m["impostor"]) for m in counted}
    if len(counts) != 1:  # none known, or methods scored on different pairs
        return None
    ((genuine, impostor),) = counts
    return f"{genuine:,} genuine and {impostor:,} impostor pairs."


def _gain_note(methods: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the best method gains over cosine, at the lowest FAR that ten false accepts decide."""
    cosine = methods.get("cosine", {})
    for far, base in sorted(_by_far(cosine, "tar@far").items()):
        if _number(base) is None or _by_far(cosine, "false_accepts").get(far, 0) < 10:
            continue
        tars = {k: _number(_by_far(m, "tar@far").get(far)) for k, m in methods.items()}
        others = {k: tar for k, tar in tars.items() if tar is not None and k != "cosine"}
        if not others:
            return None
        best = max(others, key=others.get)
        return (
            f"At FAR {far_name(far)}, {method_name(best)} accepts {100 * others[best]:.2f} % of "
            f"the genuine pairs, cosine {100 * base:.2f} %: "
            f"{100 * (others[best] - base):+.2f} percentage points."
        )
    return None
