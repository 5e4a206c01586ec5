"""How figures of the records are written: shares, intervals, tables in Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


FARS = ("0.001", "0.0001", "1e-05")


def record(name: str) -> dict[str, Any]:
    """The record results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(share: float, digits: int = 2) -> str:
    """A share in percent, or a difference of shares in points without its sign."""
    return f"{100 * share:.{digits}f}"


def points(difference: float, digits: int = 2) -> str:
    """A difference of shares in points with its sign, typeset: +0.17, −0.06."""
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float], digits: int = 2) -> str:
    """[low, high] of a difference of shares, in points."""
    return f"[{points(bounds[0], digits)}, {points(bounds[1], digits)}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table: the first `words` columns are text, the others numbers."""
    lines = [
        list(header),
        ["---"] * words + ["---:"] * (len(header) - words),
        *map(list, rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# The project's words for the methods of its records.
NAMES = {
    "cosine": "cosine",
    "ida_r": "IDA-R",
    "ida_l": "IDA-L",
    "s_norm": "S-norm",
    "as_norm": "AS-norm",
    "csn": "CSN",
}
