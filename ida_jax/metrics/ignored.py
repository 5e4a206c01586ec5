"""Impostor pairs that count neither way: those between identities known to show one person.

Data sets have people under two names, and images under the wrong one. At low FARs little else is
accepted, so that the figures measure the labels. Such pairs of identities are left out; of the
other pairs, of the identities themselves and of the bootstrap's units nothing changes.

N faces, P pairs, M pairs of identities, I units.
"""

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.metrics.resampling import Total, by_label


def between(units: ArrayLike, ignored: ArrayLike) -> np.ndarray:
    """Whether each pair lies between two identities of the list, in either order, bool [P].

    Args:
      units: int [P, 2], the identities of both sides of each pair.
      ignored: int [M, 2], pairs of identities.
    """
    units, ignored = (np.asarray(given, np.int64).reshape(-1, 2) for given in (units, ignored))
    if not units.size or not ignored.size:
        return np.zeros(len(units), bool)
    base = min(units.min(), ignored.min())
    span = max(units.max(), ignored.max()) - base + 1

    def key(pairs: np.ndarray) -> np.ndarray:
        return (pairs.min(axis=1) - base) * span + (pairs.max(axis=1) - base)

    return np.isin(key(units), key(ignored))


def ignored_positions(labels: ArrayLike, ignored: ArrayLike) -> np.ndarray:
    """The places, ascending int64, of the pairs between the listed identities.

    The order is that of `resampling.impostor_rows`: all pairs (i, j), i < j, of two labels, by i,
    then j.

    Args:
      labels: int [N].
      ignored: int [M, 2], pairs of two labels, each pair once.
    """
    labels = np.asarray(labels)
    order, group, rank, starts = by_label(labels)
    n = order.size
    rows = [_product(labels, pair) for pair in np.asarray(ignored).reshape(-1, 2)]
    first, second = np.concatenate([np.empty((2, 0), np.int64), *rows], axis=1)
    impostors = n - 1 - np.arange(n) - (np.bincount(group)[group] - 1 - rank)
    before = np.cumsum(impostors) - impostors
    # Columns between them that are mates of the row are not impostors.
    mates = np.searchsorted(group[order] * (n + 1) + order, group[first] * (n + 1) + second)
    passed = mates - starts[group[first]] - rank[first] - 1
    return np.sort(before[first] + second - first - 1 - passed)


def whole_positions(positions: ArrayLike, removed: np.ndarray) -> np.ndarray:
    """Places in a whole list of places in it without the `removed` ones, ascending int64."""
    positions = np.asarray(positions)
    return positions + np.searchsorted(removed - np.arange(removed.size), positions, side="right")


def total_without(total: Total, labels: ArrayLike, ignored: ArrayLike) -> Total:
    """`all_pairs_total` less the pairs between the listed identities: W − Σ n_a n_b w_a w_b.

    Args:
      total: of all impostor pairs of the faces.
      labels: int [N], the faces' units, from 0.
      ignored: int [M, 2], pairs of two units, each pair once.
    """
    faces = np.bincount(np.asarray(labels)).astype(np.float64)
    first, second = np.asarray(ignored, np.int64).reshape(-1, 2).T
    pairs = (faces[first] * faces[second])[:, None]
    return lambda weights: total(weights) - (pairs * weights[first] * weights[second]).sum(axis=0)


def labels_as_units(ignored: ArrayLike | None, identities: np.ndarray) -> np.ndarray:
    """Pairs of labels as pairs of units, int64 [M, 2], each once, lower first.

    Args:
      ignored: int [M, 2], or None.
      identities: [I], the labels, ascending.
    """
    pairs = np.asarray(() if ignored is None else ignored).reshape(-1, 2)
    units = np.minimum(np.searchsorted(identities, pairs), identities.size - 1).astype(np.int64)
    if (wrong := pairs[(identities[units] != pairs).any(axis=1)]).size:
        raise UserError(
            f"ignored identities {wrong[0][0]} and {wrong[0][1]}: expected labels of faces"
        )
    if (units[:, 0] == units[:, 1]).any():
        raise UserError("an ignored pair names one identity twice: expected two identities")
    return np.unique(np.sort(units, axis=1), axis=0).reshape(-1, 2)


def _product(labels: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Both rows of the pairs of faces between two identities, lower first, int64 [2, ·]."""
    sides = np.meshgrid(*(np.flatnonzero(labels == identity) for identity in pair), indexing="ij")
    return np.sort(np.stack([side.ravel() for side in sides]), axis=0)
