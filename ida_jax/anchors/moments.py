"""Mean and covariance of embeddings, and the alignment of one set's to another's.

Ours, not the paper's: a generator that has not learned enough makes faces that lie apart from real
ones as a whole, and log F then measures how far a face lies on their side.

Alignment comes before the rules judge the faces. Without it generated faces are linearly separable
from real ones, which costs TAR and which coverage reports. Normal draws with the same moments do as
well on LFW: it is not the faces themselves that help there.

N faces, D embedding.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError

# The floor of the variance in a direction, as a share of the mean variance: directions in which a
# set hardly varies are not amplified further.
_LEAST_VARIANCE = 1e-2


class Moments(NamedTuple):
    """The first two moments of a set of embeddings.

    Attributes:
      mean: float64 [D].
      covariance: float64 [D, D].
    """

    mean: np.ndarray
    covariance: np.ndarray


def fewest_faces(width: int) -> int:
    """2·D: the fewest faces from which a covariance of D numbers is estimated."""
    return 2 * width


def moments(embeddings: np.ndarray) -> Moments:
    """Mean and covariance of [N, D] embeddings."""
    n, width = embeddings.shape
    if n < fewest_faces(width):
        raise UserError(
            f"the covariance of {width} numbers cannot be estimated from {n:,} faces: expected "
            f"at least {fewest_faces(width):,}"
        )
    faces = np.asarray(embeddings, np.float64)
    return Moments(faces.mean(axis=0), np.cov(faces.T, ddof=1))


def matched(embeddings: np.ndarray, *, own: Moments, target: Moments) -> np.ndarray:
    """Unit embeddings with the target's mean and covariance in place of their own.

        f ↦ normalise(C_t^½ · C_o^−½ · (f − μ_o) + μ_t)

    Source: correlation alignment (CORAL; Sun, Feng and Saenko, "Return of Frustratingly Easy Domain
    Adaptation", AAAI 2016), with the means moved too. Normalising changes the moments a little, as
    much as the target's own embeddings differ in length from it.

    Args:
      embeddings: [N, D]; a row with NaN keeps it.
      own: the moments of the set that they come from.
      target: the moments that they get.

    Returns:
      float32 [N, D], unit rows.
    """
    change = _power(own.covariance, -0.5) @ _power(target.covariance, 0.5)
    moved = (np.asarray(embeddings, np.float64) - own.mean) @ change + target.mean
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def _power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    """A symmetric matrix to a power, its eigenvalues floored."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, _LEAST_VARIANCE * values.mean())
    return (vectors * values**exponent) @ vectors.T
