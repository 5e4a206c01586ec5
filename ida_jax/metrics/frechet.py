"""Generated faces against real ones, as two clouds of embeddings: distance, quality, variety.

Any embedding space will do, and the figures belong to that space: those of unit embeddings of a
face model are small numbers that compare with others of the same model and as many faces, and never
with published FIDs, which are of an Inception network's features.

N real and M generated faces, D embedding.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError

# Rows and columns of a tile of distances: 16 MB.
_TILE = 1024, 2048
# Squared distances are differences of numbers as large as the squared norms, of float64.
_ROUNDING = 1e-12


class PrecisionRecall(NamedTuple):
    """Two shares in 0 … 1.

    Attributes:
      precision: of the generated faces, those that lie where real ones are: quality.
      recall: of the real faces, those that lie where generated ones are: variety.
    """

    precision: float
    recall: float


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """The Fréchet distance of two clouds, each taken for a Gaussian (Heusel et al., 2017):

        |μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½),

    Σ with N − 1 in the denominator. With Σ = RᵀR, R of the QR decomposition of the centred rows,
    the trace of (Σ₁ Σ₂)^½ is the sum of the singular values of R₁ R₂ᵀ: no root of an asymmetric
    matrix is taken, and none of a covariance, which would cost half the digits at a low rank.

    The covariance of few rows is too uneven, which adds to the distance: two draws of N rows from
    one population are about ½ D / N of its variance apart (0.039 and 0.019 with N = 1,435 and 2,870
    of LFW's people, D = 128), and with N below a few D the figure is little else. Compare only
    figures of equally many faces, and with that of real ones.

    Args:
      real: [N, D], N ≥ 2.
      generated: [M, D], M ≥ 2.

    Raises:
      UserError: fewer than 2 rows, widths that differ, or values that are not finite.
    """
    real, generated = _checked(real, generated, fewest=2)
    shift = np.sum((real.mean(axis=0) - generated.mean(axis=0)) ** 2)
    roots = [_root(rows) for rows in (real, generated)]
    variance = sum(np.sum(root**2) for root in roots)
    common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(float(shift + variance - 2 * common), 0.0)


def precision_recall(real: ArrayLike, generated: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., 2019).

    A cloud's manifold is the union of balls about its rows, each reaching to that row's k-th
    nearest other row by euclidean distance. Precision is the share of generated faces in the real
    ones' manifold, recall the share of real faces in the generated ones'. Larger clouds have
    smaller balls: compare only figures of equally many faces.

    Distances are computed by tiles: beside the rows, memory is O(N + M).

    Args:
      real: [N, D].
      generated: [M, D].
      k: 1 … min(N, M) − 1.
    """
    if k < 1:
        raise UserError(f"k is {k}: expected the number of a nearest neighbour, at least 1")
    real, generated = _checked(real, generated, fewest=k + 1, why=f" for k = {k}")
    return PrecisionRecall(_share_within(generated, real, k), _share_within(real, generated, k))


def _root(rows: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with RᵀR the covariance of the rows [N, D]."""
    centred = rows - rows.mean(axis=0)[None, :]
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(rows) - 1)


def _share_within(faces: np.ndarray, cloud: np.ndarray, k: int) -> float:
    """The share of faces [N, D] that are in a ball about any row of the cloud [M, D]."""
    radii = _neighbour_distances(cloud, k)
    rows, columns = _TILE
    inside = 0
    for start in range(0, len(faces), rows):
        block = faces[start : start + rows]
        within = np.zeros(len(block), bool)
        for first in range(0, len(cloud), columns):
            distances = _squared_distances(block, cloud[first : first + columns])
            within |= (distances <= radii[None, first : first + columns]).any(axis=1)
        inside += int(within.sum())
    return inside / len(faces)


def _neighbour_distances(cloud: np.ndarray, k: int) -> np.ndarray:
    """Squared distances [M] of the rows to their k-th nearest other row, with room for rounding."""
    rows, columns = _TILE
    out = np.empty(len(cloud))
    for start in range(0, len(cloud), rows):
        block = cloud[start : start + rows]
        nearest = np.full((len(block), k), np.inf)
        for first in range(0, len(cloud), columns):
            distances = _squared_distances(block, cloud[first : first + columns])
            own = np.arange(start, start + len(block)) - first
            here = np.flatnonzero((own >= 0) & (own < distances.shape[1]))
            distances[here, own[here]] = np.inf
            both = np.concatenate([nearest, distances], axis=1)
            nearest = np.partition(both, k - 1, axis=1)[:, :k]
        out[start : start + rows] = nearest.max(axis=1)
    return out + _ROUNDING * np.einsum("nd,nd->n", cloud, cloud)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|aᵢ − bⱼ|² of [n, D] and [m, D], float64 [n, m]."""
    of_a, of_b = (np.einsum("nd,nd->n", rows, rows) for rows in (a, b))
    return np.maximum(of_a[:, None] + of_b[None, :] - 2 * (a @ b.T), 0)


def _checked(
    real: ArrayLike, generated: ArrayLike, *, fewest: int, why: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N, D] and [M, D]."""
    clouds = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    for what, rows in zip(("real", "generated"), clouds, strict=True):
        if rows.ndim != 2 or rows.shape[0] < fewest or rows.shape[1] < 1:
            raise UserError(
                f"{what} embeddings of shape {list(rows.shape)} were given, expected [N, D] with "
                f"N ≥ {fewest}{why}"
            )
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise UserError(f"row {bad} of the {what} embeddings is NaN or infinite")
    if clouds[0].shape[1] != clouds[1].shape[1]:
        raise UserError(
            f"real embeddings are {clouds[0].shape[1]} wide, generated ones {clouds[1].shape[1]}: "
            "expected both of one model"
        )
    return clouds
