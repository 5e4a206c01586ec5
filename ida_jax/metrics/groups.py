"""Groups of faces, and the groups of the pairs that they make.

A pair of two faces of one group is of that group; of two groups, it is "across groups", a row of
its own; a pair with a face without a group is of none. Where the groups are levels (of quality,
say), a pair is of the lower of its two faces' levels.

N faces, P pairs, Q groups of pairs, I units (identities), R resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.common.validation import row_norms
from ida_jax.metrics.resampling import (
    Total,
    genuine_rows,
    impostor_rows,
    pair_list_total,
)

ACROSS, REST = "across groups", "no group"  # rows of the figures' own
# Norms that differ by less are those of embeddings made unit vectors, in any precision.
_SAME_NORMS = 1e-3
_BLOCK = 1 << 20  # pairs at once
_MOST_GROUPS = 1000


class Cells(NamedTuple):
    """How a pair's group follows from its faces'.

    Attributes:
      names: Q names.
      of: int16 [F + 1, F + 1], the pair's group by its faces' F groups, −1 for none; the last row
        and column are of faces without a group, whose code is −1.
      compared: how many of the Q groups, from the first, are compared with each other; "across
        groups" is not.
    """

    names: tuple[str, ...]
    of: np.ndarray
    compared: int


class FaceGroups(NamedTuple):
    """The groups of N faces.

    Attributes:
      codes: int [N], from 0; −1 for a face without a group.
      cells: the groups of the pairs.
      notes: what a reader must know, such as how many faces have no group.
    """

    codes: np.ndarray
    cells: Cells
    notes: tuple[str, ...] = ()

    def rows(self, kept: np.ndarray) -> "FaceGroups":
        """The groups of some of the faces."""
        return self._replace(codes=self.codes[kept])

    def of_pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """int16 [P]: the groups of pairs of rows."""
        return self.cells.of[self.codes[first], self.codes[second]]

    def listed(self, pairs: np.ndarray) -> "ListedGroups":
        """The groups of listed pairs of rows, [P, 2]."""
        codes = self.of_pairs(*pairs.T)
        return ListedGroups(codes, self.cells.names, self.cells.compared, self.notes)


class ListedGroups(NamedTuple):
    """The groups of P pairs in a list.

    Attributes:
      codes: int [P], from 0; −1 for a pair of no group.
      names: Q names.
      compared: as in `Cells`.
      notes: as in `FaceGroups`.
    """

    codes: np.ndarray
    names: tuple[str, ...]
    compared: int
    notes: tuple[str, ...] = ()

    def rows(self, kept: np.ndarray) -> "ListedGroups":
        """The groups of some of the pairs."""
        return self._replace(codes=self.codes[kept])


class PairGroups(NamedTuple):
    """The groups of scored pairs, in the order of the scores.

    Attributes:
      names: Q names.
      compared: as in `Cells`.
      genuine: int [G], each genuine pair's group; −1 for none.
      impostor: int [n], each impostor pair's.
      total: the impostor pairs' weight by group in each resample, float64 [Q, R] from weights
        [I, R]; None where nothing is resampled.
    """

    names: tuple[str, ...]
    compared: int
    genuine: np.ndarray
    impostor: np.ndarray
    total: Callable[[np.ndarray], np.ndarray] | None = None


def named_cells(names: Sequence[str]) -> Cells:
    """The cells of groups that are not in an order: within each, and across."""
    _refuse_names(names, ACROSS, REST)
    if len(names) > _MOST_GROUPS:
        raise UserError(
            f"{len(names):,} groups, such as {names[0]} and {names[1]}: expected at most "
            f"{_MOST_GROUPS:,}, each of many people"
        )
    count = len(names)
    of = np.full((count + 1, count + 1), -1, np.int16)
    of[:count, :count] = count
    of[np.arange(count), np.arange(count)] = np.arange(count)
    return Cells((*names, ACROSS) if count > 1 else tuple(names), of, count)


def one_group_a_pair(codes: np.ndarray, names: Sequence[str]) -> ListedGroups:
    """Groups that a list gives the pairs themselves; all are compared.

    Args:
      codes: int [P], places in `names`.

    Raises:
      UserError: a group that bears the name of the pairs without one.
    """
    _refuse_names(names, REST)
    return ListedGroups(codes, tuple(names), len(names))


def level_cells(names: Sequence[str]) -> Cells:
    """The cells of levels, from the lowest: a pair is of the lower of its faces' levels."""
    count = len(names)
    of = np.full((count + 1, count + 1), -1, np.int16)
    of[:count, :count] = np.minimum.outer(np.arange(count), np.arange(count))
    return Cells(tuple(names), of, count)


def norm_groups(embeddings: np.ndarray, count: int, *, what: str = "embeddings") -> FaceGroups:
    """Faces in levels of their embedding's norm, such that the levels hold about as many pairs.

    A pair is of the level of its lower norm ‖x‖, the worse image of the two. Of pairs of faces
    drawn at random a share 1 − (1 − p)² has a face among the lowest p, so that level j of Q ends at
    the quantile 1 − √(1 − j/Q) of the faces' norms.

    Args:
      embeddings: [N, D] as the model gives them; a row that is zero, NaN or infinite has no level.
      count: Q, at least 2.
      what: how an error names the embeddings.
    """
    n = len(embeddings)
    if not 2 <= count <= min(n, _MOST_GROUPS):
        raise UserError(
            f"{count} groups of norms were asked for of {n:,} faces: expected from 2 to "
            f"{min(n, _MOST_GROUPS):,}"
        )
    norms = row_norms(embeddings)
    good = np.isfinite(norms) & (norms > 0)
    known = norms[good]
    if not known.size or np.ptp(known) <= _SAME_NORMS * known.max():
        shown = f"{known.min():.4g} to {known.max():.4g}" if known.size else "none is finite"
        raise UserError(
            f"{what} have norms that are all alike ({shown}), as embeddings do that were made unit "
            "vectors: norms say nothing then; give the model's own output"
        )
    edges = np.quantile(known, 1 - np.sqrt(1 - np.arange(1, count) / count))
    codes = np.where(good, np.searchsorted(edges, norms, side="left"), -1).astype(np.int32)
    names = [f"norm {j} of {count}" for j in range(1, count + 1)]
    names[0], names[-1] = f"{names[0]} (lowest)", f"{names[-1]} (highest)"
    note = (
        f"groups are levels of the embeddings' norms, {known.min():.4g} to {known.max():.4g}; a "
        "pair is of the lower of its two faces' levels"
    )
    return FaceGroups(codes, level_cells(names), (note,))


def groups_of_all_pairs(
    faces: FaceGroups, units: np.ndarray, genuine: int, *, left_out: ArrayLike = ()
) -> PairGroups:
    """The groups of all pairs of N faces, in `score_all_pairs`' order.

    With n_ag faces of unit a in group g, N_g = Σ_a n_ag w_a: the impostor pairs of two groups weigh
    N_g N_h − Σ_a n_ag n_ah w_a² in a resample, and those of one group half of that.

    Args:
      faces: the faces' groups.
      units: int [N], the faces' identities, numbered from 0.
      genuine: the number of genuine pairs.
      left_out: places among the impostor pairs of those that do not count, ascending.
    """
    n, cells = len(units), faces.cells
    impostors = n * (n - 1) // 2 - genuine
    of_genuine = faces.of_pairs(*genuine_rows(units, np.arange(genuine)))
    of_impostor = np.empty(impostors, np.int16)
    for start in range(0, impostors, _BLOCK):
        places = np.arange(start, min(start + _BLOCK, impostors))
        of_impostor[places] = faces.of_pairs(*impostor_rows(units, places))
    left_out = np.asarray(left_out, np.int64)
    fewer = units[np.stack(impostor_rows(units, left_out), axis=1)]
    fewer = [fewer[of_impostor[left_out] == q] for q in range(len(cells.names))]
    of_impostor = np.delete(of_impostor, left_out)

    known = len(cells.of) - 1
    counts = np.zeros((int(units.max()) + 1, known))
    has = faces.codes >= 0
    np.add.at(counts, (units[has], faces.codes[has]), 1)
    first, second = np.triu_indices(known)
    both = counts[:, first] * counts[:, second]
    half = np.where(first == second, 0.5, 1.0)
    target = cells.of[first, second]

    def total(weights: np.ndarray) -> np.ndarray:
        drawn = counts.T @ weights
        pairs = half[:, None] * (drawn[first] * drawn[second] - both.T @ np.square(weights))
        whole = [pairs[target == q].sum(axis=0) for q in range(len(cells.names))]
        less = [(weights[of[:, 0]] * weights[of[:, 1]]).sum(axis=0) for of in fewer]
        return np.stack(whole) - np.stack(less)

    return PairGroups(cells.names, cells.compared, of_genuine, of_impostor, total)


def groups_of_listed_pairs(
    listed: ListedGroups, same: np.ndarray, *, units: np.ndarray | None = None
) -> PairGroups:
    """The groups of pairs in a list, by label.

    Args:
      listed: the pairs' groups.
      same: bool [P], True for a genuine pair.
      units: int [P, 2], the identities of both sides, numbered from 0; None where unknown.
    """
    codes, names, compared, _ = listed
    split = codes[same], codes[~same]
    if units is None:
        return PairGroups(names, compared, *split)
    of_impostors, count = units[~same], int(units.max()) + 1
    totals: list[Total] = [
        pair_list_total(of_impostors[split[1] == q], count=count) for q in range(len(names))
    ]

    def total(weights: np.ndarray) -> np.ndarray:
        return np.stack([of(weights) for of in totals])

    return PairGroups(names, compared, *split, total)


def _refuse_names(names: Sequence[str], *reserved: str) -> None:
    for name in reserved:
        if name in names:
            raise UserError(f"a group is named '{name}', as a row of the figures is: rename it")
