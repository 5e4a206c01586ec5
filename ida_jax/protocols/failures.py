"""The pairs that methods decide wrongly, or differently: rows of faces to look at.

N faces, P pairs, G genuine pairs, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ida_jax.metrics.decisions import Changed, Failure, Kind, changed_decisions, worst_places
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS
from ida_jax.metrics.resampling import genuine_rows
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.rescoring.method_table import BASELINE, HEADLINE, is_dao
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.terms import FaceTerms

RowsOf = Callable[[np.ndarray], np.ndarray]
_MOST = 20  # pairs of a kind and method


def changed_pairs_of_all(
    scores: Mapping[str, SplitScores],
    labels: np.ndarray,
    rows_of_impostors: RowsOf,
    fars: Sequence[float],
) -> tuple[float | None, dict[Kind, Changed] | None]:
    """The FAR and the pairs of `AllPairs`, from scores in `score_all_pairs`' order."""
    if BASELINE not in scores or HEADLINE not in scores:
        return None, None
    base, other = scores[BASELINE], scores[HEADLINE]
    wanted = sorted(set(fars))
    points = zip(tar_at_far(*base, wanted), tar_at_far(*other, wanted), strict=True)
    firm = [pair for pair in points if min(p.false_accepts for p in pair) >= FEWEST_FALSE_ACCEPTS]
    if not firm:
        return None, None
    at_base, at_other = firm[0]
    genuine, impostors = base.genuine.size, base.impostor.size
    changed = changed_decisions(
        np.concatenate(base),
        np.concatenate(other),
        np.repeat([True, False], [genuine, impostors]),
        base_threshold=at_base.threshold,
        other_threshold=at_other.threshold,
    )
    for kind, (places, total) in changed.items():
        _, is_genuine = kind
        rows = (
            np.stack(genuine_rows(labels, places), axis=1)
            if is_genuine
            else rows_of_impostors(places - genuine)
        )
        changed[kind] = Changed(rows, total)
    return at_base.far, changed


def worst_pairs_of_all(
    scores: Mapping[str, SplitScores], labels: np.ndarray, rows_of_impostors: RowsOf
) -> dict[str, dict[bool, np.ndarray]]:
    """{method: {whether genuine: int64 [≤ 20, 2], rows}}, scores in `score_all_pairs`' order."""
    worst = {}
    for name, split in scores.items():
        genuine, impostor = worst_places(split, most=_MOST)
        rows = np.stack(genuine_rows(labels, genuine), axis=1)
        worst[name] = {True: rows, False: rows_of_impostors(impostor)}
    return worst


def described(
    worst: Mapping[str, Mapping[bool, np.ndarray]],
    changed: Mapping[Kind, Changed] | None,
    faces: np.ndarray,
    names: Sequence[str],
    methods: Mapping[str, FaceTerms],
) -> tuple[Failure, ...]:
    """The pairs with what is known of them, by method and kind, sorted by score.

    Args:
      worst, changed: as in `AllPairs`.
      faces: float32 [N, D], unit rows.
      names: N names.
      methods: the faces' terms.
    """
    listed = {
        (method, ("worst", genuine)): rows
        for method, kinds in worst.items()
        if method in methods
        for genuine, rows in kinds.items()
    }
    listed |= {(HEADLINE, kind): of.pairs[:_MOST] for kind, of in (changed or {}).items()}
    found = []
    for (method, (kind, genuine)), pairs in listed.items():
        terms = methods[method]
        scores = pair_scores(faces, pairs, {method: terms})[method]
        cosines = np.einsum("pd,pd->p", *(faces[side] for side in pairs.T))
        densities = np.asarray(terms.values)[pairs, 0] if is_dao(method) else None
        for place in np.argsort(scores if genuine else -scores, kind="stable"):
            found.append(
                Failure(
                    method,
                    kind,
                    genuine,
                    (names[pairs[place, 0]], names[pairs[place, 1]]),
                    float(cosines[place]),
                    None if densities is None else tuple(densities[place].tolist()),
                    float(scores[place]),
                )
            )
    return tuple(found)
