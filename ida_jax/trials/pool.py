"""All pairs within each of several parts of the faces, as one list, without their rows in memory.

G genuine and n impostor pairs, I identities, R resamples, Q groups of pairs.
"""

from collections.abc import Sequence

import numpy as np

from ida_jax.metrics.group_rates import Sides
from ida_jax.metrics.groups import FaceGroups, PairGroups, groups_of_all_pairs
from ida_jax.metrics.resampling import all_pairs_total, genuine_rows, impostor_rows
from ida_jax.metrics.roc import SplitScores
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
    counts = [pair_counts(part.labels) for part in parts]
    ends = np.cumsum([impostors for _, impostors in counts])
    totals = [all_pairs_total(part.labels) for part in parts]

    def impostor(positions: np.ndarray) -> np.ndarray:
        found = np.empty((len(positions), 2), np.int32)
        owner = np.searchsorted(ends, positions, side="right")
        for number, part in enumerate(parts):
            own = owner == number
            start = ends[number] - counts[number][1]
            rows = impostor_rows(part.labels, positions[own] - start)
            found[own] = part.people[part.labels[np.stack(rows, axis=1)]]
        return found

    def total(weights: np.ndarray) -> np.ndarray:
        return sum(
            of(weights[part.people]) for of, part in zip(totals, parts, strict=True)
        )  # the parts share nobody, so that no pair lies in two

    genuine = [
        part.people[part.labels[genuine_rows(part.labels, np.arange(count)).first]]
        for part, (count, _) in zip(parts, counts, strict=True)
    ]
    people = max(int(part.people[-1]) for part in parts) + 1
    twice = np.repeat(np.concatenate(genuine).astype(np.int32)[:, None], 2, axis=1)
    return Sides(twice, impostor, people, total)


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
