"""The five-point alignment of face crops, in one place.

N faces, H height, W width. Points are (x, y) in pixels, the centre of the upper left pixel (0, 0):
the left eye in the picture, the right eye, the nose, the left and the right corner of the mouth.
"""

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError

# Where ArcFace's crops of 112×112 have the five points (InsightFace).
ARCFACE_POINTS = np.array([
    [38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
    [41.5493, 92.3655], [70.7299, 92.2041],
])  # fmt: skip
ARCFACE_POINTS.setflags(write=False)
_ARCFACE_SIZE = 112
# Float64 rounding error, relative to the points' spread, below which a spread counts as zero.
_TINY = 1e-12


def similarity_transform(
    points: ArrayLike, reference: np.ndarray = ARCFACE_POINTS, *, size: int = 112
) -> np.ndarray:
    """The similarity that brings faces' points closest to the reference, in least squares.

    With points and reference as centred complex numbers z and w, it is the factor
    a = Σ z̄ᵢwᵢ / Σ |zᵢ|² and the shift between the centres: scale |a|, rotation arg a. A factor
    cannot mirror, and this is the best of those that do not, Umeyama's (1991) solution with
    det R = 1.

    Args:
      points: [N, 5, 2] or [5, 2].
      reference: [5, 2], where a crop of 112×112 has them.
      size: of the crop; another one scales the reference by size / 112.

    Returns:
      float64 [N, 2, 3] or [2, 3]: (x, y) of the picture goes to M·(x, y, 1) of the crop.
    """
    points = np.asarray(points, np.float64)
    if points.ndim not in (2, 3) or points.shape[-2:] != (5, 2):
        raise UserError(f"points are {list(points.shape)}: expected [N, 5, 2] or [5, 2]")
    if size < 1:
        raise UserError(f"crops of {size} pixels were asked for: expected at least 1")
    target = _complex(np.asarray(reference, np.float64) * (size / _ARCFACE_SIZE))
    with np.errstate(all="ignore"):  # what overflows or divides by zero is found below
        source = _complex(points)
        source_centre, target_centre = source.mean(-1, keepdims=True), target.mean()
        z, w = source - source_centre, target - target_centre
        spread = np.sum(np.abs(z) ** 2, -1)
        product = np.sum(np.conj(z) * w, -1)
        factor = product / spread
        shift = target_centre - factor * source_centre[..., 0]
        extent = np.max(np.abs(source), axis=-1) ** 2
        aligned = np.abs(product) > _TINY * np.sqrt(spread * np.sum(np.abs(w) ** 2))
        good = (spread > _TINY * extent) & aligned & np.isfinite(factor) & np.isfinite(shift)
    if not np.all(good):
        row = "" if points.ndim == 2 else f" of row {int(np.argmin(good))}"
        shown = points[np.argmin(good)] if points.ndim == 3 else points
        raise UserError(
            f"the five points{row} give no alignment: {np.round(shown, 1).tolist()}; expected the "
            "places of eyes, nose and mouth corners in pixels"
        )
    a, b, x, y = factor.real, factor.imag, shift.real, shift.imag
    return np.stack([np.stack([a, -b, x], -1), np.stack([b, a, y], -1)], -2)


def fit_residual(
    points: np.ndarray, reference: np.ndarray = ARCFACE_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """What the best similarity leaves of faces' points, and how far it turns them.

    With z and w as in `similarity_transform`: 1 − |Σ z̄ᵢwᵢ|² / (Σ |zᵢ|² Σ |wᵢ|²), 0 for a perfect
    fit and at most 1, and |arg a|.

    Args:
      points: [N, 5, 2].
      reference: [5, 2].

    Returns:
      float64 [N] of each; a residual of 1 for points that coincide or overflow.
    """
    z, w = _complex(points), _complex(reference)
    with np.errstate(all="ignore"):
        z, w = z - z.mean(-1, keepdims=True), w - w.mean()
        product = np.sum(np.conj(z) * w, -1)
        fit = np.abs(product) ** 2 / (np.sum(np.abs(z) ** 2, -1) * np.sum(np.abs(w) ** 2))
    return np.where(np.isfinite(fit), 1 - fit, 1.0), np.abs(np.angle(product))


def align(image: np.ndarray, points: ArrayLike, *, size: int = 112) -> np.ndarray:
    """One face's aligned crop, bilinear, black beyond the picture (InsightFace's norm_crop).

    Args:
      image: uint8 [H, W, 3].
      points: [5, 2], in the image's pixels.

    Returns:
      uint8 [size, size, 3].

    Raises:
      UserError: another kind of image, an empty one, or as `similarity_transform`.
    """
    import cv2

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"the image is {image.dtype} {list(image.shape)}: expected uint8 [H, W, 3]")
    transform = similarity_transform(points, size=size)
    if transform.shape != (2, 3):
        raise UserError("points of several faces were given: expected [5, 2], one face's")
    try:
        return cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
    except cv2.error as error:
        raise UserError(
            f"an image of {list(image.shape)} cannot be aligned: {error.err}"
        ) from error


def _complex(points: np.ndarray) -> np.ndarray:
    return points[..., 0] + 1j * points[..., 1]
