"""Labelled pair lists: LFW's own file, and lists of its kind from any labelled faces.

P pairs, N faces.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.data.sources.image_names import without_suffix
from ida_jax.tables.text import canonical, shown, split_line, text_lines, whole_number


class PairList(NamedTuple):
    """Pairs of faces with their answers.

    Attributes:
      pairs: int32 [P, 2], rows of the N faces.
      same: bool [P], whether a pair is genuine.
      fold: int32 [P], the pairs' folds, from 0. Folds are contiguous.
    """

    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def kfold_pairs(
    labels: ArrayLike, *, pairs_per_fold_and_kind: int = 300, folds: int = 10, seed: int = 0
) -> PairList:
    """Draws an LFW-style list: folds without a common identity, half genuine and half impostor.

    Identities are dealt to the folds in turn, those with the most faces first, so that folds are
    alike. A fold's genuine pairs are spread over its identities as evenly as possible; its impostor
    pairs are uniform over all pairs of faces of two identities. No pair is repeated. If a fold has
    fewer than `pairs_per_fold_and_kind` pairs of a kind, both kinds in all folds are cut to that
    number. A fold lists its genuine pairs first. The same labels and seed give the same list.

    Args:
      labels: int [N], the faces' identities.
      pairs_per_fold_and_kind: genuine pairs in a fold, and as many impostor pairs.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {list(labels.shape)} of type {labels.dtype}: expected one integer per face"
        )
    if pairs_per_fold_and_kind < 1 or folds < 1:
        raise UserError(
            f"{pairs_per_fold_and_kind} pairs of a kind in each of {folds} folds: expected at "
            "least 1 of both"
        )
    _, identity, faces = np.unique(labels, return_inverse=True, return_counts=True)
    if faces.size < 2 * folds or np.count_nonzero(faces > 1) < folds:
        raise UserError(
            f"{faces.size} identities, {np.count_nonzero(faces > 1)} of them with two faces or "
            f"more, for {folds} folds: expected {2 * folds} and {folds}; take fewer folds"
        )

    rng = np.random.default_rng(seed)
    dealt = rng.permutation(faces.size)
    dealt = dealt[np.argsort(-faces[dealt], kind="stable")]
    fold_of_identity = np.empty(faces.size, np.int64)
    fold_of_identity[dealt] = np.arange(faces.size) % folds

    # Rows grouped by identity within each fold: an identity's faces are then one block.
    members = [np.flatnonzero(fold_of_identity[identity] == fold) for fold in range(folds)]
    members = [rows[np.argsort(identity[rows], kind="stable")] for rows in members]
    blocks = [np.unique(identity[rows], return_counts=True)[1] for rows in members]
    count = min(
        pairs_per_fold_and_kind,
        min(int(np.sum(sizes * (sizes - 1) // 2)) for sizes in blocks),
        min(int(np.sum(sizes)) ** 2 - int(np.sum(sizes**2)) for sizes in blocks) // 2,
    )
    pairs = []
    for rows, sizes in zip(members, blocks, strict=True):
        pairs.append(rows[_draw_genuine(rng, sizes, count)])
        pairs.append(rows[_draw_impostor(rng, sizes, count)])
    return PairList(
        pairs=np.concatenate(pairs).astype(np.int32),
        same=np.tile(np.repeat([True, False], count), folds),
        fold=np.repeat(np.arange(folds, dtype=np.int32), 2 * count),
    )


def consecutive_pairs(same: ArrayLike, *, folds: int = 10) -> PairList:
    """The list of a verification set (`.bin`): pair i is images 2i and 2i + 1.

    Folds are contiguous blocks, as InsightFace cuts them; the first P mod F have one pair more.

    Args:
      same: bool [P].
      folds: F.

    Raises:
      UserError: fewer pairs than folds, or fewer than 1 fold.
    """
    same = np.asarray(same, bool)
    return PairList(
        pairs=np.arange(2 * same.size, dtype=np.int32).reshape(-1, 2),
        same=same,
        fold=contiguous_folds(same.size, folds),
    )


def contiguous_folds(pairs: int, folds: int) -> np.ndarray:
    """int32 [P], the fold of each pair, cut as `consecutive_pairs` cuts them."""
    if not 1 <= folds <= pairs:
        raise UserError(f"{folds} folds of {pairs} pairs: expected from 1 to {pairs} folds")
    sizes = [block.size for block in np.array_split(np.arange(pairs), folds)]
    return np.repeat(np.arange(folds, dtype=np.int32), sizes)


def read_lfw_pairs(path: str | PathLike[str], names: Sequence[str]) -> PairList:
    """Reads LFW's pairs.txt.

    The first line is `FOLDS PAIRS`. Then each fold has PAIRS genuine lines `NAME i j` and PAIRS
    impostor lines `NAME1 i NAME2 j`, separated by tabs, or by spaces where no name has any. Image i
    of NAME is `NAME/NAME_%04d`.

    Args:
      names: the N faces' names, `NAME/NAME_0001`, whose places are the rows of the result.

    Raises:
      UserError: an unreadable or malformed file, an image that is not among `names`, or a repeated
        name. The message gives the file and the line.
    """
    row_of_name = _rows_by_name(names)
    lines = _fields(path)
    header = lines[0][1] if lines else []
    sizes = [whole_number(field) for field in header]
    if len(sizes) != 2 or not all(size is not None and size > 0 for size in sizes):
        raise UserError(f"{path}:1: expected the number of folds and of pairs, such as '10\\t300'")
    folds, count = sizes
    if len(lines) - 1 != 2 * folds * count:
        raise UserError(
            f"{path}: found {len(lines) - 1} pairs, but the first line promises "
            f"{2 * folds * count} ({folds} folds of {count} genuine and {count} impostor pairs)"
        )

    pairs = []
    same = np.tile(np.repeat([True, False], count), folds)
    for (number, fields), genuine in zip(lines[1:], same, strict=True):
        where = f"{path}:{number}"
        if len(fields) != (3 if genuine else 4):
            expected = "'NAME i j'" if genuine else "'NAME1 i NAME2 j'"
            kind = "a genuine" if genuine else "an impostor"
            raise UserError(f"{where}: found {len(fields)} fields, {kind} pair is {expected}")
        second_name = fields[0] if genuine else fields[2]
        if fields[:2] == [second_name, fields[-1]]:
            raise UserError(f"{where}: an image with itself, expected two images")
        pairs.append(
            (
                _row(where, fields[0], fields[1], row_of_name),
                _row(where, second_name, fields[-1], row_of_name),
            )
        )
    return PairList(
        pairs=np.array(pairs, np.int32),
        same=same,
        fold=np.repeat(np.arange(folds, dtype=np.int32), 2 * count),
    )


def read_calfw_pairs(path: str | PathLike[str], names: Sequence[str]) -> PairList:
    """Reads CALFW's pairs_CALFW.txt (and CPLFW's, which has the same form).

    A pair is two lines `IMAGE FOLD` with the same number: 1 … 10, the fold of a genuine pair, or 0
    for an impostor pair. Impostor pairs, which have no fold in the list, are dealt to the folds in
    equal blocks, in their order.

    Args:
      names: the N faces' names, whose places are the rows of the result. Folders and
        suffixes are ignored on both sides: `A/A_0001.png` is the list's `A_0001.jpg`.

    Raises:
      UserError: as `read_lfw_pairs`.
    """
    row_of_name = _rows_by_name([_stem(name) for name in names])
    lines = _fields(path)
    if not lines or len(lines) % 2:
        raise UserError(f"{path}: found {len(lines)} lines, expected two per pair")
    pairs, numbers = [], []
    for (at, first), (next_at, second) in zip(lines[::2], lines[1::2], strict=True):
        for number, fields in ((at, first), (next_at, second)):
            # No list has more folds than lines.
            if len(fields) != 2 or not 0 <= _whole(fields[1]) <= len(lines):
                raise UserError(f"{path}:{number}: expected 'IMAGE FOLD', such as 'A_0001.jpg 3'")
            if _stem(fields[0]) not in row_of_name:
                image = shown(fields[0])[1:-1]
                raise UserError(
                    f"{path}:{number}: {image} is not among the {len(names)} names given"
                )
        if _whole(first[1]) != _whole(second[1]):
            raise UserError(
                f"{path}:{next_at}: fold {second[1]} after {first[1]}: expected the same number on "
                "both lines of a pair"
            )
        pairs.append([row_of_name[_stem(fields[0])] for fields in (first, second)])
        if pairs[-1][0] == pairs[-1][1]:
            raise UserError(f"{path}:{next_at}: an image with itself, expected two images")
        numbers.append(_whole(first[1]))
    fold = np.array(numbers)
    same = fold > 0
    folds = int(fold.max(initial=0))
    if len(np.unique(fold[same])) != folds or folds < 2 or np.count_nonzero(~same) < folds:
        raise UserError(
            f"{path}: found {np.count_nonzero(same)} genuine pairs in folds up to {folds} and "
            f"{np.count_nonzero(~same)} impostor pairs, expected both kinds in at least 2 folds"
        )
    impostors = int(np.count_nonzero(~same))
    fold[~same] = 1 + np.arange(impostors) * folds // impostors
    order = np.lexsort((~same, fold))
    return PairList(
        pairs=np.array(pairs, np.int32)[order],
        same=same[order],
        fold=(fold[order] - 1).astype(np.int32),
    )


def _rows_by_name(names: Sequence[str]) -> dict[str, int]:
    row_of_name = {canonical(name): row for row, name in enumerate(names)}
    if len(row_of_name) < len(names):
        raise UserError(
            f"{len(names)} names, only {len(row_of_name)} of them different: a pair list needs one "
            "name a face"
        )
    return row_of_name


def _fields(path: str | PathLike[str]) -> list[tuple[int, list[str]]]:
    """The fields of the lines that are not blank, each with its line's number from 1."""
    lines = text_lines(Path(path), what="list of pairs")
    return [(i, split_line(line)) for i, line in enumerate(lines, 1) if line.strip()]


def _whole(field: str) -> int:
    """The field's number, or −1, which no list has."""
    number = whole_number(field)
    return -1 if number is None else number


def _stem(name: str) -> str:
    """A name without its folders and its image suffix."""
    return without_suffix(name.rsplit("/", 1)[-1])


def _row(where: str, name: str, image: str, row_of_name: dict[str, int]) -> int:
    number = _whole(image)
    if number < 0:
        raise UserError(
            f"{where}: found {shown(image)}, expected the number of an image of {shown(name)[1:-1]}"
        )
    full = f"{name}/{name}_{number:04d}"
    if full not in row_of_name:
        raise UserError(
            f"{where}: {shown(full)[1:-1]} is not among the {len(row_of_name)} names given"
        )
    return row_of_name[full]


def _draw_genuine(rng: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """int64 [count, 2]: positions in identity blocks of `sizes` faces, both in one block."""
    starts = np.cumsum(sizes) - sizes
    available = sizes * (sizes - 1) // 2
    turn = rng.permutation(sizes.size)
    quota = np.zeros_like(sizes)
    while missing := count - int(quota.sum()):
        quota[turn[quota[turn] < available[turn]][:missing]] += 1
    pairs = []
    for block in np.flatnonzero(quota):
        later, earlier = _pair_of_number(rng.choice(available[block], quota[block], replace=False))
        pairs.append(starts[block] + np.stack([earlier, later], axis=1))
    return rng.permutation(np.concatenate(pairs))


def _pair_of_number(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair (j, i), i < j, with j(j−1)/2 + i = number."""
    later = np.floor((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    return later, number - later * (later - 1) // 2


def _draw_impostor(rng: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """int64 [count, 2]: positions in identity blocks of `sizes` faces, in two different blocks."""
    # Face a pairs with the faces after its own block. Those pairs are numbered, so that drawing
    # numbers without repetition draws pairs.
    block_end = np.repeat(np.cumsum(sizes), sizes)
    last_number = np.cumsum(block_end[-1] - block_end)
    number = rng.choice(last_number[-1], count, replace=False)
    first = np.searchsorted(last_number, number, side="right")
    second = block_end[first] + number - (last_number[first] - (block_end[-1] - block_end[first]))
    return np.stack([first, second], axis=1)
