"""Identification, 1:N: how often a search finds the person, and how often it finds somebody.

A mated search is of a person who is in the gallery, a non-mated one of a person who is not. By
NIST's definitions (FRVT 1:N):

    TPIR(t) = share of mated searches whose mate scores strictly above t, at whatever rank
    FPIR(t) = share of non-mated searches in which any gallery face scores strictly above t
    rank-k  = share of mated searches whose mate is among the k highest scores (closed set)

TPIR at a FPIR f is thus `roc.tar_at_far` of the mates' scores against each non-mated search's
highest score, by its rule: the threshold is the ⌊f·Q⌋-th highest of them, and f is never exceeded.

M mated and Q non-mated searches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ida_jax.metrics.roc import tar_at_far
from ida_jax.metrics.score_figures import far_key

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)


class Searches(NamedTuple):
    """What searches of one gallery found.

    Attributes:
      mate: [M], the mates' scores.
      rank: int [M], the mates' ranks from 1; any number past the highest that is asked for where
        the mate is not among those found.
      highest: [Q], each non-mated search's highest score.
    """

    mate: np.ndarray
    rank: np.ndarray
    highest: np.ndarray


def search_figures(
    searches: Searches, *, fpirs: Sequence[float] = FPIRS, ranks: Sequence[int] = RANKS
) -> dict[str, Any]:
    """TPIR at each FPIR with its threshold and false alarms, and the rank-k rates.

    Raises:
      UserError: no mated or no non-mated searches, or a FPIR outside (0, 1].
    """
    points = {far_key(point.far): point for point in tar_at_far(*searches[::2], fpirs)}
    return {
        "mated_probes": int(searches.mate.size),
        "nonmated_probes": int(searches.highest.size),
        "tpir@fpir": {fpir: point.tar for fpir, point in points.items()},
        "threshold@fpir": {fpir: point.threshold for fpir, point in points.items()},
        "false_alarms": {fpir: point.false_accepts for fpir, point in points.items()},
        "rank": {str(k): float(np.mean(searches.rank <= k)) for k in ranks},
    }


def mate_ranks(found: np.ndarray, mates: np.ndarray) -> np.ndarray:
    """int64 [M]: each mate's place, from 1, among the gallery rows found, best first.

    Args:
      found: int [M, top], gallery rows.
      mates: int [M], the mate's gallery row; top + 1 is given where it is not among them.
    """
    hits = np.asarray(found) == np.asarray(mates)[:, None]
    return np.where(hits.any(axis=1), 1 + np.argmax(hits, axis=1), 1 + hits.shape[1])
