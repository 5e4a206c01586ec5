"""All pairs within each of several parts of the faces, as one list, without their rows in memory.

G genuine and n impostor pairs, I identities, R resamples, Q groups of pairs.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ida_jax.metrics.group_rates import Sides
from ida_jax.metrics.groups import FaceGroups, PairGroups, groups_of_all_pairs
from ida_jax.metrics.resampling import Rows, all_pairs_total, genuine_rows, impostor_rows
from ida_jax.metrics.roc import SplitScores
from ida_jax.protocols.failures import RowsOf
from ida_jax.rescoring.tiles import pair_counts
from ida_jax.trials.rotate import Scored


def pooled(parts: Sequence[Scored]) -> dict[str, SplitScores]:
    """{method: its scores of all parts}, of the methods that all have, which are taken out of them.

    Beside the scores it takes the memory of one method's.
    """
    common = [name for name in parts[0].scores if all(name in part.scores for part in parts)]
    scores = {}
    for name in common:
        scores[name] = joined([part.scores.pop(name) for part in parts])
    return scores


def joined(splits: Sequence[SplitScores]) -> SplitScores:
    """The scores of several lists as one, copied."""
    return SplitScores(*map(np.concatenate, zip(*splits, strict=True)))


def sides_of(parts: Sequence[Scored]) -> Sides:
    """The identities of the pairs of all parts, computed where they are asked for."""
    totals = [all_pairs_total(part.labels) for part in parts]

    def total(weights: np.ndarray) -> np.ndarray:
        return sum(
            of(weights[part.people]) for of, part in zip(totals, parts, strict=True)
        )  # the parts share nobody, so that no pair lies in two

    genuine, impostor = _pairs_of(parts, [part.people[part.labels] for part in parts])
    pairs = sum(pair_counts(part.labels)[0] for part in parts)
    people = max(int(part.people[-1]) for part in parts) + 1
    return Sides(genuine(np.arange(pairs)), impostor, people, total)


def rows_of(parts: Sequence[Scored]) -> tuple[RowsOf, RowsOf]:
    """The rows of the trial's data of the genuine, and of the impostor, pairs of all parts."""
    return _pairs_of(parts, [part.rows for part in parts])


def log_density_of(parts: Sequence[Scored], faces: int) -> dict[str, np.ndarray]:
    """{method: float32 [N], log F of the trial's N faces}; NaN of those in no part."""
    found: dict[str, np.ndarray] = {}
    for part in parts:
        for name, of_part in part.log_density.items():
            found.setdefault(name, np.full(faces, np.nan, np.float32))[part.rows] = of_part
    return found


def _pairs_of(parts: Sequence[Scored], faces: Sequence[np.ndarray]) -> tuple[RowsOf, RowsOf]:
    """What the two faces of the genuine, and of the impostor, pairs of all parts have, [P, 2].

    Args:
      faces: for each part, int [N], what its faces have.
    """
    counts = np.array([pair_counts(part.labels) for part in parts])

    def of_kind(kind: int, rows: Callable[[np.ndarray, np.ndarray], Rows]) -> RowsOf:
        ends = np.cumsum(counts[:, kind])

        def pairs(positions: np.ndarray) -> np.ndarray:
            found = np.empty((len(positions), 2), np.int32)
            owner = np.searchsorted(ends, positions, side="right")
            for number, part in enumerate(parts):
                own = owner == number
                start = ends[number] - counts[number, kind]
                found[own] = faces[number][np.stack(rows(part.labels, positions[own] - start), 1)]
            return found

        return pairs

    return of_kind(0, genuine_rows), of_kind(1, impostor_rows)


def groups_of(parts: Sequence[Scored], faces: FaceGroups) -> PairGroups:
    """The groups of the pairs of all parts, in the order of `pooled`.

    Args:
      faces: the groups of the trial's faces.
    """
    made = [
        groups_of_all_pairs(faces.rows(part.rows), part.labels, pair_counts(part.labels)[0])
        for part in parts
    ]

    def total(weights: np.ndarray) -> np.ndarray:
        return sum(of.total(weights[part.people]) for of, part in zip(made, parts, strict=True))

    return made[0]._replace(
        genuine=np.concatenate([of.genuine for of in made]),
        impostor=np.concatenate([of.impostor for of in made]),
        total=total,
    )
