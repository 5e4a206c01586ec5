"""How far an approximate search is from the exact one, in the terms that scores depend on.

N faces, K support.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.ops.dao import log_density
from ida_jax.ops.hypersphere import Neighbours


class ApproximationError(NamedTuple):
    """The difference between two searches of the same faces.

    Attributes:
      recall: the share of the exact support sets' members that were found.
      rms: root mean square of the difference in log F, over the standard deviation of log F.
      largest: the largest difference in log F, over the same.
      faces: how many were compared; those with fewer than K allowed anchors are left out.
    """

    recall: float
    rms: float
    largest: float
    faces: int


def approximation_error(
    neighbours: Neighbours, exact: Neighbours, *, tau: float = 1.0
) -> ApproximationError:
    """Compares the support sets [N, K] of the same faces, found approximately and exactly.

    A missed neighbour matters by what takes its place: log F sees the similarities alone, so that
    recall may be low and log F right, or the other way round.
    """
    whole = np.isfinite(exact.similarities[:, -1])
    neighbours = Neighbours(*(x[whole] for x in neighbours))
    exact = Neighbours(*(x[whole] for x in exact))
    common = sum(
        len(np.intersect1d(a, b)) for a, b in zip(neighbours.indices, exact.indices, strict=True)
    )
    true = np.asarray(log_density(exact.similarities, tau=tau), np.float64)
    difference = np.asarray(log_density(neighbours.similarities, tau=tau), np.float64) - true
    # A spread of nothing but rounding would blow rounding up.
    spread = max(float(true.std()), 1e-4) if true.size else 1.0
    return ApproximationError(
        common / max(exact.indices.size, 1),
        float(np.sqrt(np.mean(difference**2))) / spread if true.size else 0.0,
        float(np.max(np.abs(difference), initial=0.0)) / spread,
        len(true),
    )
