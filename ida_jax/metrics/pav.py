"""Pool-adjacent-violators: how the share of genuine scores rises with the score.

G genuine and n impostor scores, higher meaning more alike.
"""

from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """Runs of scores, ascending: counts of both kinds, lowest and highest score, float64 each."""

    genuine: np.ndarray
    impostor: np.ndarray
    low: np.ndarray
    high: np.ndarray


def score_groups(genuine: np.ndarray, impostor: np.ndarray) -> Blocks:
    """Each distinct genuine score with its ties, and each run of impostors between two of them.

    The isotonic fit is level over neighbours of equal value, so a run of impostors is one group:
    millions of impostors make no more groups than twice the genuine scores. NaN is left out.

    Args:
      genuine: [G] scores in any order.
      impostor: [n] scores; ascending ones are used without a copy.
    """
    genuine = genuine[~np.isnan(genuine)]
    impostor = impostor[~np.isnan(impostor)]
    if not np.all(impostor[:-1] <= impostor[1:]):
        impostor = np.sort(impostor)
    values, count = np.unique(genuine, return_counts=True)
    start = np.searchsorted(impostor, values, side="left")
    stop = np.searchsorted(impostor, values, side="right")
    run_start, run_stop = np.append(0, stop), np.append(start, impostor.size)
    runs = run_stop - run_start
    edges = np.append(impostor, np.nan)  # an empty run at the end has no score
    low = _interleaved(edges[run_start], values)
    high = _interleaved(edges[run_stop - 1], values)
    groups = Blocks(
        _interleaved(np.zeros(runs.size), count), _interleaved(runs, stop - start), low, high
    )
    some = groups.genuine + groups.impostor > 0
    return Blocks(*(field[some] for field in groups))


def pool(groups: Blocks) -> Blocks:
    """Pools neighbours until the share of genuine scores never falls from a block to the next."""
    from scipy.optimize import isotonic_regression

    total = groups.genuine + groups.impostor
    if not total.size:
        return groups
    starts = isotonic_regression(groups.genuine / total, weights=total).blocks[:-1]
    return Blocks(
        np.add.reduceat(groups.genuine, starts),
        np.add.reduceat(groups.impostor, starts),
        np.fmin.reduceat(groups.low, starts),
        np.fmax.reduceat(groups.high, starts),
    )


def _interleaved(runs: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.empty(runs.size + values.size)
    out[0::2], out[1::2] = runs, values
    return out
