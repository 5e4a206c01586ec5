"""The files of IJB-B and IJB-C: images in templates, pairs of templates, galleries.

    FOLDER/meta/ijbc_face_tid_mid.txt           image template medium, one line per image
    FOLDER/meta/ijbc_template_pair_label.txt    template template label (1 genuine, 0 impostor)
    FOLDER/meta/ijbc_name_5pts_score.txt        image x1 y1 … x5 y5 score (the detector's)
    FOLDER/meta/ijbc_1N_gallery_G1.csv, _G2.csv (IJB-B: _S1, _S2), ijbc_1N_probe_mixed.csv

The CSV files name their columns; TEMPLATE_ID and SUBJECT_ID are read. The same with ijbb.

N images, T templates, P pairs, G templates of a gallery.
"""

import csv
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.tables.text import (
    canonical,
    delimiter_of,
    parse_columns,
    text_blocks,
    text_lines,
    whole_number,
)

SUBSETS = ("ijbb", "ijbc")
# Of the whole releases, in the order of `_COUNTED`.
_WHOLE = {
    "ijbb": (227_630, 12_115, 8_010_270, 10_270),
    "ijbc": (469_375, 23_124, 15_658_489, 19_557),
}
_COUNTED = ("images", "templates", "pairs", "genuine pairs")
_UNKNOWN = "has no images in the list of faces"
# Ids below it are looked up in a table.
_TABLE = 1 << 24


class IjbMeta(NamedTuple):
    """The 1:1 protocol; rows of templates are places in `template_ids`.

    Attributes:
      names: the N images' file names, in the lists' order, which is the embeddings'.
      templates: int32 [N], each image's template, a row.
      media: int64 [N], each image's medium (a photograph, or the video that a frame is of).
      template_ids: int64 [T], ascending.
      pairs: int32 [P, 2], rows of templates.
      same: bool [P].
      detector: float32 [N], the detector's scores, or None without such a list.
      notes: differences from the whole release.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray
    template_ids: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    detector: np.ndarray | None
    notes: tuple[str, ...] = ()


class Enrolled(NamedTuple):
    """Templates with their subjects.

    Attributes:
      rows: int32 [G], rows of templates, ascending.
      subjects: int64 [G].
    """

    rows: np.ndarray
    subjects: np.ndarray


class Galleries(NamedTuple):
    """The 1:N protocol's lists.

    Attributes:
      galleries: {"g1": templates, "g2": templates}.
      probes: the probes' templates, of both galleries' subjects.
    """

    galleries: dict[str, Enrolled]
    probes: Enrolled


def read_ijb(folder: str | os.PathLike[str], *, subset: str) -> IjbMeta:
    """Reads the 1:1 protocol's lists.

    Args:
      folder: the release's, or its meta folder.
      subset: "ijbb" or "ijbc".

    Raises:
      UserError: an absent or malformed list, lists that disagree, a pair of an unknown template or
        of one template alone, a label other than 0 and 1; by file and line.
    """
    if subset not in SUBSETS:
        raise UserError(f"unknown subset '{subset}': choose one of {', '.join(SUBSETS)}")
    meta = _meta(folder)
    images = meta / f"{subset}_face_tid_mid.txt"
    names, template_of, media = _columns(images, (str, int, int))
    template_ids, templates = np.unique(template_of, return_inverse=True)
    pair_file = meta / f"{subset}_template_pair_label.txt"
    pairs, same = _pairs(pair_file, template_ids)
    counts = (len(names), template_ids.size, same.size, int(np.count_nonzero(same)))
    notes = [
        f"{count:,} {what} were found, the whole {subset.upper()} has {whole:,}"
        for count, whole, what in zip(counts, _WHOLE[subset], _COUNTED, strict=True)
        if count != whole
    ]
    points = meta / f"{subset}_name_5pts_score.txt"
    return IjbMeta(
        names=tuple(names),
        templates=templates.astype(np.int32),
        media=media,
        template_ids=template_ids,
        pairs=pairs,
        same=same,
        detector=_detector(points, names, images) if points.is_file() else None,
        notes=tuple(notes),
    )


def read_galleries(
    folder: str | os.PathLike[str], *, subset: str, template_ids: np.ndarray
) -> Galleries | None:
    """Reads the 1:N protocol's lists; None if the release has none of them."""
    meta = _meta(folder)
    paths = {}
    for key, endings in (("g1", ("G1", "S1")), ("g2", ("G2", "S2"))):
        candidates = [meta / f"{subset}_1N_gallery_{ending}.csv" for ending in endings]
        paths[key] = next((path for path in candidates if path.is_file()), candidates[0])
    paths["probes"] = meta / f"{subset}_1N_probe_mixed.csv"
    if not any(path.is_file() for path in paths.values()):
        return None
    galleries = {key: _enrolled(path, template_ids) for key, path in paths.items()}
    probes = galleries.pop("probes")
    for key, gallery in galleries.items():
        subjects, counts = np.unique(gallery.subjects, return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"{paths[key]}: subject {subjects[counts > 1][0]} has {counts.max()} templates, "
                "expected one a subject in a gallery"
            )
    both = np.intersect1d(galleries["g1"].subjects, galleries["g2"].subjects)
    if both.size:
        raise UserError(
            f"{paths['g2']}: subject {both[0]} is in {paths['g1'].name} too, expected galleries "
            "without a common subject"
        )
    for key, gallery in galleries.items():
        both = np.intersect1d(gallery.rows, probes.rows)
        if both.size:
            raise UserError(
                f"{paths['probes']}: template {template_ids[both[0]]} is in {paths[key].name} too, "
                "expected probes that are not enrolled"
            )
    return Galleries(galleries, probes)


def _meta(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    meta = folder / "meta" if (folder / "meta").is_dir() else folder
    if not meta.is_dir():
        raise UserError(f"no folder at {folder}: expected an IJB release, with meta/ in it")
    return meta


def _pairs(path: Path, template_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 [P, 2] and bool [P]."""
    first, second, label = _columns(path, (int, int, int))
    _require(
        path,
        (label == 0) | (label == 1),
        lambda row: f"label {label[row]}, expected 1 for a genuine pair and 0 for an impostor pair",
    )

    def known_rows(ids: np.ndarray) -> np.ndarray:
        rows = _rows_of(ids, template_ids)
        _require(path, rows >= 0, lambda row: f"template {ids[row]} {_UNKNOWN}")
        return rows

    rows = np.stack([known_rows(first), known_rows(second)], axis=1)
    _require(
        path,
        rows[:, 0] != rows[:, 1],
        lambda row: f"template {first[row]} with itself, expected two",
    )
    return rows, label.astype(bool)


def _rows_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """int32, the place of each id in the ascending `known`, −1 where there is none."""
    if not 0 <= known[0] <= known[-1] < _TABLE:
        places = np.minimum(np.searchsorted(known, ids), known.size - 1)
        return np.where(known[places] == ids, places, -1).astype(np.int32)
    table = np.full(known[-1] + 1, -1, np.int32)
    table[known] = np.arange(known.size, dtype=np.int32)
    inside = (ids >= 0) & (ids < table.size)
    return np.where(inside, table[np.where(inside, ids, 0)], -1).astype(np.int32)


def _detector(path: Path, names: np.ndarray, images: Path) -> np.ndarray:
    """float32 [N], the last column of the list of five points."""
    own, *numbers = _columns(path, (str, *[float] * 11))
    if len(own) != len(names):
        raise UserError(
            f"{path} has {len(own)} lines and {images.name} {len(names)}: expected as many"
        )
    _require(
        path,
        own == names,
        lambda row: (
            f"image {own[row]}, but {images.name} has {names[row]} there: expected both "
            "in the same order"
        ),
    )
    score = numbers[-1]
    # NaN fails the comparison too; a score beyond float32 counts as infinite.
    _require(
        path,
        (score >= 0) & (score <= np.finfo(np.float32).max),
        lambda row: f"score {score[row]}, expected a finite one of at least 0",
    )
    return score.astype(np.float32)


def _enrolled(path: Path, template_ids: np.ndarray) -> Enrolled:
    lines = text_lines(path, what="list of templates and subjects")
    entries: dict[int, tuple[int, int]] = {}  # {template: (subject, line)}
    try:
        reader = csv.reader(lines, delimiter=delimiter_of("".join(lines[:1]).encode()))
        header = [name.strip().upper() for name in next(reader, [])]
        if not {"TEMPLATE_ID", "SUBJECT_ID"} <= set(header):
            raise UserError(
                f"{path}:1: the columns are {' '.join(', '.join(header).split())[:80]}: "
                "expected TEMPLATE_ID and SUBJECT_ID among them"
            )
        columns = [header.index("TEMPLATE_ID"), header.index("SUBJECT_ID")]
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            found = [whole_number(fields[c]) if c < len(fields) else None for c in columns]
            if None in found:
                raise UserError(
                    f"{path}:{reader.line_num}: expected whole numbers as TEMPLATE_ID and "
                    "SUBJECT_ID"
                )
            template, subject = found
            above, _ = entries.setdefault(template, (subject, reader.line_num))
            if above != subject:
                raise UserError(
                    f"{path}:{reader.line_num}: template {template} is of subject {subject}, "
                    f"and of {above} above"
                )
    except csv.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not entries:
        raise UserError(f"{path} has no templates")
    try:
        ids = np.array(sorted(entries), np.int64)
        subjects = np.array([entries[template][0] for template in ids.tolist()], np.int64)
    except OverflowError:
        raise UserError(f"{path} has ids beyond 64 bits") from None
    rows = _rows_of(ids, template_ids)
    unknown = ids[rows < 0].tolist()
    if unknown:
        line, first = min((entries[template][1], template) for template in unknown)
        raise UserError(f"{path}:{line}: template {first} {_UNKNOWN}")
    return Enrolled(rows, subjects)


def _columns(path: Path, kinds: tuple[type, ...]) -> list[np.ndarray]:
    """Columns of a text file, separated by white space: str, int (64 bits) or float."""
    import pyarrow as pa

    require_file(path, what="list")
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    blocks = []
    for block in text_blocks(path):
        columns = parse_columns(block, " ", [types[kind] for kind in kinds])
        if columns is None:  # tabs, several spaces, or a mistake, whose line is then named
            return _columns_line_by_line(path, kinds)
        blocks.append([column.to_numpy() for column in columns])
    if not blocks:
        raise UserError(f"{path} is empty")
    columns = [np.concatenate(column) for column in zip(*blocks, strict=True)]
    # Names as the slow path and the embeddings have them.
    return [
        np.array([canonical(name) for name in column], object) if kind is str else column
        for column, kind in zip(columns, kinds, strict=True)
    ]


def _columns_line_by_line(path: Path, kinds: tuple[type, ...]) -> list[np.ndarray]:
    rows: list[list] = [[] for _ in kinds]
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != len(kinds):
            raise UserError(f"{path}:{number}: found {len(fields)} fields, expected {len(kinds)}")
        for row, kind, field in zip(rows, kinds, fields, strict=True):
            try:
                row.append(kind(field))
                if kind is int and abs(row[-1]) >= 1 << 62:
                    raise ValueError
            except ValueError:
                raise UserError(
                    f"{path}:{number}: found '{field[:40]}', expected a"
                    f"{' whole' if kind is int else ''} number"
                ) from None
    if not rows[0]:
        raise UserError(f"{path} is empty")
    types = {str: object, int: np.int64, float: np.float64}
    return [np.array(row, types[kind]) for row, kind in zip(rows, kinds, strict=True)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    for block in text_blocks(path):
        for number, line in block.lines():
            if line.strip():
                yield number, line.decode()


def _require(path: Path, good: np.ndarray, fault: Callable[[int], str]) -> None:
    """Raises UserError with the line and the fault of the first row that is not good."""
    if not good.all():
        row = int(np.argmin(good))
        number, _ = next(itertools.islice(_lines(path), row, None))
        raise UserError(f"{path}:{number}: {fault(row)}")
