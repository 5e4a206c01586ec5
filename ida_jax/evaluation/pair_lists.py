"""Scores of an evaluation set by every method, and their figures.

N faces, P pairs, D embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ida_jax.protocols.pair_lists import PairList
from ida_jax.protocols.roc import SplitScores
from ida_jax.protocols.score_figures import verification_figures
from ida_jax.protocols.verification import kfold_accuracy
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs
from ida_jax.rescoring.terms import FaceTerms


def evaluate_kfold(
    faces: np.ndarray, pair_list: PairList, methods: Mapping[str, FaceTerms]
) -> dict[str, dict[str, Any]]:
    """{method: figures} of a k-fold verification protocol (LFW, CALFW).

    Args:
      faces: float32 [N, D], unit rows.
      pair_list: the pairs, their answers and folds.
      methods: the faces' terms by each, under its name in the results.
    """
    figures = {}
    for name, terms in methods.items():
        scores = score_pairs(faces, pair_list.pairs, terms)
        accuracy = kfold_accuracy(scores, pair_list.same, folds=pair_list.fold)
        figures[name] = {
            "accuracy": accuracy.mean,
            "accuracy_deviation": accuracy.deviation,
            "pairs": len(scores),
        }
    return figures


def all_pairs_scores(
    faces: np.ndarray, labels: np.ndarray, methods: Mapping[str, FaceTerms]
) -> dict[str, SplitScores]:
    """Every method's genuine and impostor scores over all pairs of faces, ascending."""
    scores = {}
    for name, terms in methods.items():
        split = score_all_pairs(faces, labels, terms)
        split.genuine.sort()
        split.impostor.sort()
        scores[name] = split
    return scores


def evaluate_all_pairs(
    scores: Mapping[str, SplitScores], *, fars: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """{method: figures} of verification over all pairs: TAR at each FAR, and the EER."""
    return {name: verification_figures(split, fars=fars) for name, split in scores.items()}
