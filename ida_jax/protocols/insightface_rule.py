"""Listed pairs by InsightFace's rule: 10-fold accuracy, VAL@FAR and XNorm, as arcface_torch prints.

Its rule is one of cosines (`metrics.insightface`): other methods' scores have no squared distance,
and are compared by exact thresholds, in the variant beside this one.

N faces, P pairs, D embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.evaluation import Evaluation, far_key
from ida_jax.metrics.insightface import (
    VAL_FAR,
    insightface_accuracy,
    squared_distances,
    validation_rate,
)
from ida_jax.protocols.table import Faces, option
from ida_jax.rescoring.method_table import BASELINE

RULES = ("exact", "insightface")
FOLDS = 10
_NOTE = (
    "by InsightFace's rule: squared distances against thresholds 0.01 apart (VAL: 0.001), of the "
    "cosine alone, which has them; {} has every method by exact thresholds"
)
_XNORM = (
    "XNorm {:.4f} is the mean norm of the embeddings as they were given; InsightFace's is of "
    "images and mirrored images apart, before they are summed"
)


@dataclass(frozen=True)
class RuleOptions:
    """Whose rule a list's accuracy follows besides ours."""

    rule: str = option(
        "exact",
        "exact thresholds (default); or insightface: also arcface_torch's accuracy, VAL@FAR, XNorm",
        choices=RULES,
    )


def check_rule(rule: str, pair_list: PairList) -> None:
    """Finds before any work what InsightFace's rule would refuse after it.

    Raises:
      UserError: a fold without pairs of a kind.
    """
    if rule != RULES[0]:
        same = np.asarray(pair_list.same)
        validation_rate(np.zeros(same.size), same, folds=pair_list.fold)


def with_insightface(
    evaluated: dict[str, Evaluation], rule: str, faces: Faces, pair_list: PairList, name: str
) -> dict[str, Evaluation]:
    """The variants, and "NAME_insightface" where that rule is asked for.

    Args:
      evaluated: {variant: Evaluation}, of which the last has the list's exact figures.
      rule: of `RULES`.
      faces: of which `norms` become XNorm.
      pair_list: with P pairs, whose folds are contiguous.
      name: the variant's, "lfw_10fold".

    Raises:
      UserError: as `validation_rate`.
    """
    if rule == RULES[0]:
        return evaluated
    figures = insightface_figures(
        faces.embeddings, pair_list, bad=faces.bad, xnorm=float(np.mean(faces.norms[~faces.bad]))
    )
    notes = (_NOTE.format(list(evaluated)[-1]), _XNORM.format(figures["xnorm"]))
    return evaluated | {f"{name}_insightface": Evaluation({BASELINE: figures}, {}, notes)}


def insightface_figures(
    faces: np.ndarray, pair_list: PairList, *, bad: np.ndarray | None = None, xnorm: float
) -> dict[str, Any]:
    """Accuracy ± deviation, VAL@FAR ± deviation with the FAR that it has, and XNorm.

    Args:
      faces: float32 [N, D], of any norm.
      bad: bool [N], faces whose pairs are never a match; none if None.
      xnorm: the mean norm.

    Raises:
      UserError: as `validation_rate`.
    """
    pairs, same, fold = (np.asarray(column) for column in pair_list)
    same = same.astype(bool)
    distances = squared_distances(faces, pairs)
    if bad is not None:
        distances[bad[pairs].any(axis=1)] = np.nan
    accuracy = insightface_accuracy(distances, same, folds=fold)
    validation = validation_rate(distances, same, folds=fold)
    far = far_key(VAL_FAR)
    return {
        "accuracy": accuracy.mean,
        "accuracy_deviation": accuracy.deviation,
        "val@far": {far: validation.mean},
        "val_deviation@far": {far: validation.deviation},
        "val_realised_far": {far: validation.far},
        "xnorm": xnorm,
        "pairs": same.size,
        "genuine": int(np.count_nonzero(same)),
        "impostor": int(np.count_nonzero(~same)),
    }
