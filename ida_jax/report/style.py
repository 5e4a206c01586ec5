"""How methods and rates are written, and how all figures look, drawn without pyplot's state.

Colours are Okabe and Ito's, which colour-blind readers can distinguish; line styles and markers
distinguish curves in black and white.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ida_jax.common.errors import printable
from ida_jax.rescoring.method_table import METHODS, is_dao

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "–"
DPI = 150
INK = "#222222"
BLUE, VERMILION = "#0072B2", "#D55E00"
# For methods whose entry has none.
_SPARE_STYLES = (("#7B4F9D", "-", "h"), ("#4D4D4D", ":", "d"), ("#A0522D", "--", "p"))
_SETTINGS = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": "#888888", "ytick.color": "#888888", "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.grid": True, "grid.color": "#d9d9d9", "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}  # fmt: skip


def method_name(method: str) -> str:
    """The display name of a method's key; an unknown key stands for itself."""
    return METHODS[method].title if method in METHODS else method


def in_order(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries in the table's order, unknown ones last in theirs."""
    place = {method: i for i, method in enumerate(METHODS)}
    return dict(sorted(methods.items(), key=lambda item: place.get(item[0], len(place))))


def far_name(far: float | str) -> str:
    """A FAR in short: 1e-5 for 1e-05, 1e-3 for 0.001."""
    mantissa, exponent = f"{float(far):.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def score_name(method: str) -> str:
    """What a method's score is called: an axis' title."""
    if method in METHODS and METHODS[method].score_name:
        return METHODS[method].score_name
    if method in METHODS and METHODS[method].rule == "cosine":
        return "cosine similarity"
    return "log-DAO" if is_dao(method) else f"{method_name(method)} score"


def house_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function, drawing with _SETTINGS and leaving the user's matplotlib settings as they are.

    A figure's label (`Figure.get_label()`) is a sentence or two on how to read it, which the page
    prints.
    """

    @functools.wraps(draw)
    def styled(*args: Any, **options: Any) -> Figure:
        from matplotlib import rc_context

        with rc_context(_SETTINGS):
            return draw(*args, **options)

    return styled


def new_figure(
    *, rows: int = 1, columns: int = 1, width: float, height: float, sharey: str = "none"
) -> tuple[Figure, list[Axes]]:
    """A figure in inches, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()


def new_panels(count: int, *, height: float, above: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most three in a row; `height` is a row's, in inches."""
    columns = min(count, 3)
    rows = -(-count // columns)
    width = 6.5 if columns == 1 else 10
    figure, axes = new_figure(rows=rows, columns=columns, width=width, height=above + height * rows)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def drawn_text(text: str) -> str:
    """A user's name as matplotlib draws it: a $ in it begins no formula."""
    return printable(text).replace("$", r"\$")


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{method: its line's colour, style and marker}, the same in every figure."""
    own = {name: METHODS[name].style if name in METHODS else None for name in methods}
    plain = [name for name, style in own.items() if style is None]
    spare = {name: _SPARE_STYLES[i % len(_SPARE_STYLES)] for i, name in enumerate(plain)}
    styles = {}
    for name, style in own.items():
        color, line, marker = style or spare[name]
        styles[name] = {"color": color, "linestyle": line, "marker": marker}
        styles[name] |= {"markersize": 5, "markerfacecolor": "white", "linewidth": 1.8}
    return styles
