"""The pairs to look at, as tables of HTML that open by method and kind."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping

from ida_jax.common.errors import printable
from ida_jax.metrics.decisions import Failure
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.report.page import html_table
from ida_jax.report.style import MISSING, method_name, score_name

_MOST_LETTERS = 60
_TITLES = {
    ("worst", True): "genuine pairs of the lowest scores",
    ("worst", False): "impostor pairs of the highest scores",
    ("corrected", True): "corrected: genuine pairs that the cosine rejects",
    ("corrected", False): "corrected: impostor pairs that the cosine accepts",
    ("broken", True): "broken: genuine pairs that the cosine accepts",
    ("broken", False): "broken: impostor pairs that the cosine rejects",
}


def failure_section(evaluated: Mapping[str, Evaluation]) -> str:
    """The section's HTML; "" where no variant has pairs to look at."""
    parts = []
    for variant, of in evaluated.items():
        if of.failures:
            parts.append(
                f"<h3>{html.escape(printable(variant))}</h3>" if len(evaluated) > 1 else ""
            )
        for method, own in itertools.groupby(of.failures, lambda failure: failure.method):
            kinds = itertools.groupby(own, lambda failure: (failure.kind, failure.genuine))
            parts += [_details(method, kind, list(pairs)) for kind, pairs in kinds]
    if not parts:
        return ""
    reading = (
        "Each list opens by a click or by Enter. The worst first: look there for wrong labels, bad "
        "images and look-alikes. Names of people are personal data."
    )
    return (
        f'<section id="failures"><h2>Pairs to look at</h2>\n<p class="soft">{reading}</p>\n'
        '<div class="controls"></div>\n' + "\n".join(parts) + "\n</section>"
    )


def _details(method: str, kind: tuple[str, bool], failures: list[Failure]) -> str:
    head = ["Pair", "Cosine", "log F₁", "log F₂", score_name(method)]
    shown = [0, 1, 2, 3, 4] if any(f.log_density for f in failures) else [0, 1, 4]
    if method == "cosine":
        shown = [0, 1]
    cells = "".join(f'<th scope="col">{html.escape(printable(head[i]))}</th>' for i in shown)
    rows = (
        (_names(failure.names), "".join(f"<td>{_values(failure)[i]}</td>" for i in shown[1:]))
        for failure in failures
    )
    name, title = html.escape(printable(method_name(method))), _TITLES[kind]
    return (
        f'<details class="card" data-method="{name}" data-kind="{title}"><summary>{name}, {title} '
        f"<small>{len(failures)}</small></summary>{html_table(cells, rows)}</details>"
    )


def _values(failure: Failure) -> list[str]:
    densities = failure.log_density or (None, None)
    values = (failure.cosine, *densities, failure.score)
    return ["", *(MISSING if v is None else f"{v:.4f}".replace("-", "−") for v in values)]


def _names(names: Iterable[str]) -> str:
    shown = []
    for name in map(printable, names):
        short = name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
        shown.append(html.escape(short))
    return "<br>".join(shown)
