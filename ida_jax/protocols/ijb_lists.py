"""IJB-B and IJB-C as they are released: images in templates, pairs of templates, galleries.

    FOLDER/meta/ijbc_face_tid_mid.txt           image template medium, a line an image
    FOLDER/meta/ijbc_template_pair_label.txt    template template label (1 genuine, 0 impostor)
    FOLDER/meta/ijbc_name_5pts_score.txt        image x1 y1 … x5 y5 score (the detector's)
    FOLDER/meta/ijbc_1N_gallery_G1.csv, _G2.csv (IJB-B: _S1, _S2), ijbc_1N_probe_mixed.csv

The CSV files name their columns; TEMPLATE_ID and SUBJECT_ID are read. The same with ijbb.

N images, T templates, P pairs, G templates of a gallery.
"""

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.tables.text import canonical, delimiter_of, text_blocks, text_lines, whole_number

SUBSETS = ("ijbb", "ijbc")
# Images, templates, pairs, genuine pairs of the whole releases.
_WHOLE = {
    "ijbb": (227_630, 12_115, 8_010_270, 10_270),
    "ijbc": (469_375, 23_124, 15_658_489, 19_557),
}
_COUNTED = ("images", "templates", "pairs", "genuine pairs")
# Ids below it are looked up in a table.
_TABLE = 1 << 24


class IjbMeta(NamedTuple):
    """What the lists say; rows of templates are places in `template_ids`.

    Attributes:
      names: the N images' file names, in the lists' order, which is the embeddings'.
      templates: int32 [N], each image's template, a row.
      media: int64 [N], each image's medium (a photograph, or the video that a frame is of).
      template_ids: int64 [T], ascending.
      pairs: int32 [P, 2], rows of templates.
      same: bool [P].
      detector: float32 [N], the detector's score, or None where the release has no such list.
      notes: what differs from the whole release.
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
      UserError: a list that is absent or has another form, lists that disagree, a pair of an
        unknown template or of one template alone, a label other than 0 and 1; by file and line.
    """
    if subset not in SUBSETS:
        raise UserError(f"subset '{subset}' is unknown: choose ijbb or ijbc")
    meta = _meta(folder)
    images = meta / f"{subset}_face_tid_mid.txt"
    names, template_of, media = _columns(images, (str, int, int))
    template_ids, templates = np.unique(template_of, return_inverse=True)
    pair_file = meta / f"{subset}_template_pair_label.txt"
    pairs, same = _pairs(pair_file, template_ids)
    counts = (len(names), template_ids.size, same.size, int(np.count_nonzero(same)))
    notes = [
        f"{found:,} {what} were found, the whole {subset.upper()} has {whole:,}"
        for found, whole, what in zip(counts, _WHOLE[subset], _COUNTED, strict=True)
        if found != whole
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
    """Reads the 1:N protocol's lists; None where the release has none of them.

    Raises:
      UserError: only some of them are there, another form, a template without images, a template of
        two subjects, a subject twice in a gallery or in both, an enrolled probe; by file, and by
        line where it is of one line.
    """
    meta = _meta(folder)
    paths = {}
    for key, endings in (("g1", ("G1", "S1")), ("g2", ("G2", "S2"))):
        candidates = [meta / f"{subset}_1N_gallery_{ending}.csv" for ending in endings]
        paths[key] = next((path for path in candidates if path.is_file()), candidates[0])
    paths["probes"] = meta / f"{subset}_1N_probe_mixed.csv"
    if not any(path.is_file() for path in paths.values()):
        return None
    found = {key: _enrolled(path, template_ids) for key, path in paths.items()}
    for key in ("g1", "g2"):
        subjects, counts = np.unique(found[key].subjects, return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"{paths[key]}: subject {subjects[counts > 1][0]} has {counts.max()} templates, "
                "expected one a subject in a gallery"
            )
    both = np.intersect1d(found["g1"].subjects, found["g2"].subjects)
    if both.size:
        raise UserError(
            f"{paths['g2']}: subject {both[0]} is in {paths['g1'].name} too, expected galleries "
            "without a common subject"
        )
    probes = found.pop("probes")
    for key, enrolled in found.items():
        both = np.intersect1d(enrolled.rows, probes.rows)
        if both.size:
            raise UserError(
                f"{paths['probes']}: template {template_ids[both[0]]} is in {paths[key].name} too, "
                "expected probes that are not enrolled"
            )
    return Galleries(found, probes)


def _meta(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    meta = folder / "meta" if (folder / "meta").is_dir() else folder
    if not meta.is_dir():
        raise UserError(f"no folder at {folder}: expected an IJB release, with meta/ in it")
    return meta


def _pairs(path: Path, template_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 [P, 2] and bool [P]."""
    first, second, label = _columns(path, (int, int, int))
    wrong = np.flatnonzero((label != 0) & (label != 1))
    if wrong.size:
        raise UserError(
            f"{path}:{_line(path, wrong[0])}: label {label[wrong[0]]}, expected 1 for a genuine "
            "pair and 0 for an impostor pair"
        )
    rows = []
    for ids in (first, second):
        found = _rows_of(ids, template_ids)
        unknown = np.flatnonzero(found < 0)
        if unknown.size:
            raise UserError(
                f"{path}:{_line(path, unknown[0])}: template {ids[unknown[0]]} has no images in "
                "the list of faces"
            )
        rows.append(found)
    alone = np.flatnonzero(rows[0] == rows[1])
    if alone.size:
        raise UserError(
            f"{path}:{_line(path, alone[0])}: template {first[alone[0]]} with itself, expected two"
        )
    return np.stack(rows, axis=1), label.astype(bool)


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
    found, *numbers = _columns(path, (str, *[float] * 11))
    if len(found) != len(names):
        raise UserError(
            f"{path} has {len(found)} lines and {images.name} {len(names)}: expected as many"
        )
    other = np.flatnonzero(found != names)
    if other.size:
        raise UserError(
            f"{path}:{_line(path, other[0])}: image {found[other[0]]}, but {images.name} has "
            f"{names[other[0]]} there: expected both in the same order"
        )
    score = numbers[-1]
    # NaN fails the comparison too; a score beyond float32 is as good as infinite.
    bad = np.flatnonzero(~((score >= 0) & (score <= np.finfo(np.float32).max)))
    if bad.size:
        raise UserError(
            f"{path}:{_line(path, bad[0])}: score {score[bad[0]]}, expected a finite one of at "
            "least 0"
        )
    return score.astype(np.float32)


def _enrolled(path: Path, template_ids: np.ndarray) -> Enrolled:
    lines = text_lines(path, what="list of templates and subjects")
    subject_of: dict[int, int] = {}
    line_of: dict[int, int] = {}
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
            line_of.setdefault(template, reader.line_num)
            if subject_of.setdefault(template, subject) != subject:
                raise UserError(
                    f"{path}:{reader.line_num}: template {template} is of subject {subject}, "
                    f"and of {subject_of[template]} above"
                )
    except csv.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not subject_of:
        raise UserError(f"{path} has no templates")
    try:
        ids = np.array(sorted(subject_of), np.int64)
        subjects = np.array([subject_of[template] for template in ids.tolist()], np.int64)
    except OverflowError:
        raise UserError(f"{path} has ids beyond 64 bits") from None
    rows = _rows_of(ids, template_ids)
    unknown = ids[rows < 0].tolist()
    if unknown:
        line, first = min((line_of[template], template) for template in unknown)
        raise UserError(f"{path}:{line}: template {first} has no images in the list of faces")
    return Enrolled(rows, subjects)


def _columns(path: Path, kinds: tuple[type, ...]) -> list[np.ndarray]:
    """The columns of a text file, separated by white space: str, int (64 bits) or float each."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    require_file(path, what="list")
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    columns = [f"{i}" for i in range(len(kinds))]
    try:
        with arrow_csv.open_csv(
            path,
            arrow_csv.ReadOptions(column_names=columns, block_size=1 << 24),
            arrow_csv.ParseOptions(delimiter=" ", quote_char=False),
            arrow_csv.ConvertOptions(
                column_types={c: types[kind] for c, kind in zip(columns, kinds, strict=True)},
                null_values=[],
                strings_can_be_null=False,
            ),
        ) as reader:
            batches = [batch.columns for batch in reader]
    except (pa.ArrowException, OSError):
        # Tabs, several spaces, or a mistake, which is then named by its line.
        return _columns_line_by_line(path, kinds)
    if not sum(len(batch[0]) for batch in batches):
        raise UserError(f"{path} is empty")
    found = [
        np.concatenate([each.to_numpy(zero_copy_only=False) for each in column])
        for column in zip(*batches, strict=True)
    ]
    # Names as the slow path and the embeddings have them.
    return [
        np.array([canonical(name) for name in column], object) if kind is str else column
        for column, kind in zip(found, kinds, strict=True)
    ]


def _columns_line_by_line(path: Path, kinds: tuple[type, ...]) -> list[np.ndarray]:
    rows: list[list] = [[] for _ in kinds]
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != len(kinds):
            raise UserError(
                f"{path}:{number}: {len(fields)} fields were found, expected {len(kinds)}"
            )
        for row, kind, field in zip(rows, kinds, fields, strict=True):
            try:
                row.append(kind(field))
                if kind is int and abs(row[-1]) >= 1 << 62:
                    raise ValueError
            except ValueError:
                raise UserError(
                    f"{path}:{number}: '{field[:40]}' was found, expected a"
                    f"{' whole' if kind is int else ''} number"
                ) from None
    if not rows[0]:
        raise UserError(f"{path} is empty")
    types = {str: object, int: np.int64, float: np.float64}
    return [np.array(row, types[kind]) for row, kind in zip(rows, kinds, strict=True)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1."""
    for block in text_blocks(path):
        for number, line in block.lines():
            if line.strip():
                yield number, line.decode()


def _line(path: Path, row: int) -> int:
    """The number of the line that holds a row."""
    return next(itertools.islice(_lines(path), int(row), None))[0]
