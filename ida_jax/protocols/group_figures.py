"""Figures by group beside a protocol's own: see `ida_jax.metrics.group_rates`.

P pairs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.progress import progress_bar
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.group_rates import Sides, few_errors, group_rates
from ida_jax.metrics.groups import (
    FaceGroups,
    ListedGroups,
    groups_of_listed_pairs,
    named_cells,
    norm_groups,
)
from ida_jax.metrics.resampling import identity_codes, pair_list_total
from ida_jax.metrics.roc import SplitScores
from ida_jax.metrics.threshold_curve import ThresholdCurve, with_groups
from ida_jax.tables.groups import norm_levels, read_face_groups, without_group

_PROGRESS = partial(progress_bar, desc="groups", unit="resample", delay=2, leave=False)
NO_PEOPLE = "the groups' figures have no intervals: these are over people, and need --identities=I"


def face_groups(
    path: str | Path, names: Sequence[str] | None, rows: int | None = None
) -> FaceGroups:
    """The groups of faces by a file of groups, with a note on those without one.

    Args:
      path: a list of people or images and their groups, or one group per row.
      names: the faces' names or those of the people on them; None where unknown.
      rows: the number of faces, where names are unknown.

    Raises:
      UserError: as `ida_jax.tables.groups.read_face_groups` and `named_cells`.
    """
    grouped = read_face_groups(Path(path), names, len(names) if rows is None else rows)
    notes = without_group(grouped, "faces")
    return FaceGroups(grouped.codes, named_cells(grouped.names), notes)


def requested_groups(
    given: str | Path, embeddings: np.ndarray, names: Sequence[str] | None, *, what: str
) -> FaceGroups:
    """The groups of --groups=G: a file's (`face_groups`), or levels of the embeddings' norms.

    Args:
      given: a path, or "norms:N" (`ida_jax.tables.groups.groups_option`).
      embeddings: [N, D], as the model gave them.
      names: as in `face_groups`.
      what: the file of the embeddings, for errors.

    Raises:
      UserError: as `face_groups`, and embeddings that were normalised.
    """
    if isinstance(given, str):
        return norm_groups(embeddings, norm_levels(given), what=f"embeddings in {what}")
    return face_groups(given, names, len(embeddings))


def with_group_rates(
    evaluated: Evaluation,
    rates: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    thresholds: Mapping[str, ThresholdCurve],
) -> Evaluation:
    """The evaluation with `group_rates`' entries, and their notes after its own.

    Args:
      notes: of the groups themselves.
      thresholds: with the groups' parts.
    """
    figures = {name: of | rates.get(name, {}) for name, of in evaluated.figures.items()}
    notes = (*evaluated.notes, *notes, *few_errors(rates))
    return evaluated._replace(figures=figures, notes=notes, thresholds=thresholds)


def with_listed_groups(
    evaluated: Evaluation,
    scores: Mapping[str, np.ndarray],
    same: np.ndarray,
    identities: ArrayLike | None,
    groups: ListedGroups,
    *,
    group_thresholds: bool,
    fars: Sequence[float],
    resamples: int,
    seed: int,
) -> Evaluation:
    """The evaluation of listed pairs with figures by group.

    Args:
      scores: {method: [P]}.
      same: bool [P], True for a genuine pair.
      identities: int [P, 2], those of both sides; no intervals if None.
      groups: the pairs'.
      group_thresholds: whether figures are at one threshold per group too.
    """
    rates = listed_group_rates(
        scores, same, identities, groups,
        own_thresholds=group_thresholds, fars=fars, resamples=resamples, seed=seed,
    )  # fmt: skip
    notes = groups.notes if identities is not None else (*groups.notes, NO_PEOPLE)
    of_impostors = groups.codes[~np.asarray(same, bool)]
    thresholds = {
        name: with_groups(curve, scores[name][~same], of_impostors, groups.names)
        for name, curve in evaluated.thresholds.items()
    }
    return with_group_rates(evaluated, rates, notes, thresholds)


def listed_group_rates(
    scores: Mapping[str, np.ndarray],
    same: np.ndarray,
    identities: ArrayLike | None,
    groups: ListedGroups,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """`group_rates` of scores in one list.

    Args:
      groups: the pairs'.
      **options: `group_rates`'.
    """
    same = np.asarray(same, bool)
    units, sides = None, None
    if identities is not None:
        units, count = identity_codes(identities, same)
        of_impostors = units[~same]
        total = pair_list_total(of_impostors, count=count)
        sides = Sides(units[same], lambda at: of_impostors[at], count, total)
    of_pairs = groups_of_listed_pairs(groups, same, units=units)
    split = {name: SplitScores(of[same], of[~same]) for name, of in scores.items()}
    return group_rates(split, of_pairs, sides, progress=_PROGRESS, **options)
