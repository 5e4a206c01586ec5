"""What an evaluation gives: every method's figures, and its curve with a band.

F points of a curve.
"""

from typing import Any, NamedTuple

import numpy as np


class Band(NamedTuple):
    """A curve with its confidence band: TAR against FAR, or TPIR against FPIR.

    Attributes:
      far: float64 [F], ascending.
      tar: float64 [F].
      low: float64 [F], the band's lower end; NaN where there is none.
      high: float64 [F], the upper end.
    """

    far: np.ndarray
    tar: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Evaluated(NamedTuple):
    """One protocol variant.

    Attributes:
      figures: {method: figures}, as results.json holds them under the variant's name.
      curves: {method: its curve}; empty where the protocol has none.
      notes: sentences that a reader of the figures must know (a figure that fewer than ten false
        accepts decide, say).
    """

    figures: dict[str, dict[str, Any]]
    curves: dict[str, Band]
    notes: tuple[str, ...] = ()
