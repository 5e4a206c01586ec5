"""The look of all figures, made without pyplot's state.

Colours are Okabe and Ito's, which colour-blind readers can distinguish; line styles and markers
distinguish curves in black and white.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ida_jax.rescoring.method_table import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#222222"
BLUE, VERMILION = "#0072B2", "#D55E00"
# Of methods whose entry has none.
_SPARE_STYLES = (("#7B4F9D", "-", "h"), ("#4D4D4D", ":", "d"), ("#A0522D", "--", "p"))
_LOOK = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": "#888888", "ytick.color": "#888888", "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.grid": True, "grid.color": "#d9d9d9", "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}  # fmt: skip


def in_our_look(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function, drawing with _LOOK and leaving the user's matplotlib settings as they are."""

    @functools.wraps(draw)
    def styled(*args: Any, **options: Any) -> Figure:
        from matplotlib import rc_context

        with rc_context(_LOOK):
            return draw(*args, **options)

    return styled


def new_figure(
    *, rows: int = 1, columns: int = 1, width: float, height: float, sharey: str = "none"
) -> tuple[Figure, list[Axes]]:
    """A figure in inches, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()


def method_styles(methods: Mapping[str, Any]) -> list[tuple]:
    """Each method's colour, line and marker: its own, whatever stands beside it."""
    own = {name: METHODS[name].style if name in METHODS else None for name in methods}
    plain = [name for name, style in own.items() if style is None]
    spare = {name: _SPARE_STYLES[i % len(_SPARE_STYLES)] for i, name in enumerate(plain)}
    return [style or spare[name] for name, style in own.items()]
