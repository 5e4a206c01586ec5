"""Faces made worse step by step: blurred, made small and enlarged again, covered from below."""

from collections.abc import Sequence
from typing import Any

import numpy as np

FACES = 500


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of that many pixels."""
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image


def small(image: np.ndarray, side: int) -> np.ndarray:
    """Shrunk to that many pixels a side and enlarged again."""
    import cv2

    size = image.shape[:2][::-1]
    shrunk = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, size, interpolation=cv2.INTER_CUBIC)


def covered(image: np.ndarray, share: float) -> np.ndarray:
    """So large a share of it grey, from below."""
    out = image.copy()
    out[round(len(image) * (1 - share)) :] = 128
    return out


CHANGES = {
    "blur": (blurred, "deviation of the Gaussian, pixels", (0, 1, 2, 3, 4, 6)),
    "size": (small, "pixels a side before enlarging", (112, 64, 48, 32, 24, 16, 12)),
    "occlusion": (covered, "share covered, from below", (0, 0.125, 0.25, 0.375, 0.5, 0.625)),
}


def some_of(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """About 500 of them, at equal distances."""
    step = max(1, len(images) // FACES)
    return [images[i] for i in range(0, len(images), step)][:FACES]


def plot_against(
    axis: Any, change: dict[str, Any], mean: str, deviation: str, *, color: str, **style: Any
) -> None:
    """One figure's means over faces, and bands of a deviation, at a change's levels.

    Args:
      axis: matplotlib's.
      change: {"what": the levels' title, "rows": [{"level", mean, deviation}]}.
      mean, deviation: keys of the rows.
      **style: marker, label and the like of the line.
    """
    place = np.arange(len(change["rows"]))
    middle, spread = (np.array([row[key] for row in change["rows"]]) for key in (mean, deviation))
    axis.fill_between(place, middle - spread, middle + spread, color=color, alpha=0.15, linewidth=0)
    axis.plot(place, middle, color=color, **style)
    axis.set_xticks(place, [f"{row['level']:g}" for row in change["rows"]])
