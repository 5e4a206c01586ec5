"""LFW and CALFW as they are downloaded, made into the aligned crops that ida_jax reads.

    DATA_DIR/lfw/lfw_112.tar        NAME/NAME_0001.jpg, 112×112, with pairs.txt and split.csv
    DATA_DIR/calfw/calfw_112.tar    NAME_0001.jpg, 112×112, with pairs_CALFW.txt

N images.
"""

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file, written_whole
from ida_jax.common.outputs import lock_in, writing
from ida_jax.data.alignment import align, similarity_transform
from ida_jax.data.labelled_pairs import read_calfw_pairs, read_lfw_pairs
from ida_jax.data.landmarks import read_landmarks
from ida_jax.data.lfw_crops import read_split
from ida_jax.data.sources.image_files import ImageFiles, decode, open_images
from ida_jax.data.sources.image_names import hidden_note
from ida_jax.data.sources.jpeg import check_image
from ida_jax.tables.text import canonical

_SIZE = 112
# With colours at full resolution: MobileFaceNet's embeddings keep a cosine of 0.9992 with the
# uncompressed crop's, of 0.9984 at OpenCV's default.
_QUALITY = 98
_BATCH = 512
_SHOWN = 5
_FILE_NAME = re.compile(r"([^.].*)_\d+")


class _Set(NamedTuple):
    images: int
    by_person: bool
    pairs: str
    read_pairs: Callable


_SETS = {
    "lfw": _Set(13_233, True, "pairs.txt", read_lfw_pairs),
    "calfw": _Set(12_174, False, "pairs_CALFW.txt", read_calfw_pairs),
}


class PreparedLfw(NamedTuple):
    """What was written.

    Attributes:
      folder: DATA_DIR/lfw or DATA_DIR/calfw.
      notes: what differs from the whole data set.
    """

    folder: Path
    images: int
    pairs: int
    notes: tuple[str, ...] = ()


def written_files(folder: Path, name: str) -> dict[str, Path]:
    """What `prepare_lfw` writes in DATA_DIR/NAME, by what it is: images, pairs and split."""
    files = {"images": _tar(folder, name), "pairs": folder / _SETS[name].pairs}
    return files | ({"split": folder / "split.csv"} if name == "lfw" else {})


def prepare_lfw(
    source: str | os.PathLike[str],
    *,
    landmarks: str | os.PathLike[str] | None = None,
    pairs: str | os.PathLike[str],
    split: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str],
    name: str = "lfw",
) -> PreparedLfw:
    """Writes the crops and the lists into DATA_DIR/NAME, all or none, with a progress bar.

    Images are aligned by `ida_jax.data.alignment` and kept as JPEG of quality 98. Without
    landmarks they must be crops of 112×112 already, and keep their bytes (grey ones become RGB).

    Args:
      source: a folder or tar file of NAME_0001.jpg, in whatever folders.
      landmarks: five points per image, LFW's or IJB's form; images are found by their file names.
      split: identity,role,images (see `ida_jax.data.lfw_crops`), for "lfw".
      name: "lfw" or "calfw".

    Raises:
      UserError: an unknown name; crops that are there already; a file that is absent or damaged; an
        image without landmarks, of the wrong size, or that cannot be decoded; a pair or a line of
        the split that names an absent image or identity.
    """
    if name not in _SETS:
        raise UserError(f"data set '{name}' is unknown: choose {' or '.join(_SETS)}")
    if split is not None and name != "lfw":
        raise UserError(f"a split is for lfw, not for {name}")
    described = _SETS[name]
    folder = Path(data_dir) / name
    tar = _tar(folder, name)
    # The lock of a job that was killed as it ended is still there: run again, the job ends well.
    if tar.exists() and not lock_in(folder).exists():
        raise UserError(f"{tar} already exists: remove it first, or name another data_dir")
    require_file(Path(pairs), what="list of pairs")
    files = open_images(source)
    paths = _paths(files, by_person=described.by_person)
    rows = sorted(range(len(files)), key=paths.__getitem__)
    names = [paths[row].rsplit(".", 1)[0] for row in rows]
    listed = described.read_pairs(pairs, names)
    lists = {described.pairs: _content(pairs)}
    if split is not None:
        _check_split(Path(split), {canonical(image.split("/")[0]) for image in names})
        lists["split.csv"] = _content(split)
    points = None if landmarks is None else _points(Path(landmarks), names)
    # Files appear once all are written, the tar last: without it, nothing of the folder is looked
    # at.
    with writing({}, reading={}, folder=folder), contextlib.ExitStack() as stack:
        for left in folder.glob(f".{tar.name}.*"):  # of a kill
            left.unlink()
        temporary = stack.enter_context(written_whole(tar))
        _write_tar(temporary, [paths[row] for row in rows], _crops(files, rows, points))
        for file, content in lists.items():
            stack.enter_context(written_whole(folder / file)).write_bytes(content)
    return PreparedLfw(folder, len(rows), len(listed.same), _notes(name, len(rows), files.hidden))


def _tar(folder: Path, name: str) -> Path:
    return folder / f"{name}_{_SIZE}.tar"


def _paths(files: ImageFiles, *, by_person: bool) -> list[str]:
    """Each image's path in the tar."""
    paths, first = [], {}
    for row, full in enumerate(files.names):
        path = PurePosixPath(full)
        matched = _FILE_NAME.fullmatch(path.stem)
        if matched is None:
            raise UserError(
                f"{files.where(row)}: expected images named NAME_0001.jpg; remove other images"
            )
        if path.stem in first:
            raise UserError(
                f"{files.where(row)}: {files.where(first[path.stem])} has the same name, expected "
                "each image once"
            )
        first[path.stem] = row
        suffix = path.suffix.lower()
        paths.append(f"{matched[1]}/{path.stem}{suffix}" if by_person else path.stem + suffix)
    return paths


def _points(path: Path, names: Sequence[str]) -> np.ndarray:
    """float64 [N, 5, 2], in the order of the names."""
    landmarks = read_landmarks(path)
    stems = [PurePosixPath(image).stem for image in landmarks.names]
    place = {stem: row for row, stem in enumerate(stems)}
    if len(place) < len(stems):
        twice = next(stem for row, stem in enumerate(stems) if place[stem] != row)
        raise UserError(f"{path} has two lines for {twice!r}: expected one per image")
    wanted = [canonical(image.rsplit("/", 1)[-1]) for image in names]
    missing = [image for image, stem in zip(names, wanted, strict=True) if stem not in place]
    if missing:
        raise UserError(
            f"{path} has no points for {len(missing)} of {len(names)} images: "
            f"{', '.join(missing[:_SHOWN])}{', …' if len(missing) > _SHOWN else ''}; add them, or "
            "take the images away"
        )
    rows = [place[stem] for stem in wanted]
    for row in rows:
        try:
            similarity_transform(landmarks.points[row])
        except UserError as error:
            raise UserError(f"{path}, line {row + 1}: {error}") from error
    return landmarks.points[rows]


def _crops(files: ImageFiles, rows: Sequence[int], points: np.ndarray | None) -> Iterator[bytes]:
    from ida_jax.common.progress import progress_bar

    def crop(place: int) -> bytes:
        row = rows[place]
        return _crop(
            files.encoded(row), None if points is None else points[place], files.where(row)
        )

    title = "crops" if points is None else "align"
    bar = progress_bar(total=len(rows), desc=title, unit="image", leave=False)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), _BATCH):
            batch = range(start, min(start + _BATCH, len(rows)))
            yield from pool.map(crop, batch)
            bar.update(len(batch))


def _crop(encoded: bytes, points: np.ndarray | None, where: str) -> bytes:
    import cv2

    checked = check_image(encoded)
    if checked.problem is not None:
        raise UserError(f"{where} {checked.problem}; replace it, or remove it and its pairs")
    image = decode(checked.image, where=where)
    if points is None:
        if image.shape[:2] != (_SIZE, _SIZE):
            raise UserError(
                f"{where} is {image.shape[1]}×{image.shape[0]}: without landmarks, expected crops "
                f"of {_SIZE}×{_SIZE}; give --landmarks=FILE, five points per image"
            )
        return checked.image
    aligned = align(image, points, size=_SIZE)
    settings = [
        cv2.IMWRITE_JPEG_QUALITY, _QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]  # fmt: skip
    return cv2.imencode(".jpg", cv2.cvtColor(aligned, cv2.COLOR_RGB2BGR), settings)[1].tobytes()


def _write_tar(path: Path, names: Sequence[str], crops: Iterator[bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, encoded in zip(names, crops, strict=True):
            # By what it is: an aligned PNG has become a JPEG.
            suffix = ".jpg" if encoded.startswith(b"\xff\xd8") else ".png"
            member = tarfile.TarInfo(name.rsplit(".", 1)[0] + suffix)
            member.size = len(encoded)
            archive.addfile(member, io.BytesIO(encoded))


def _check_split(path: Path, people: set[str]) -> None:
    for identity in read_split(path):
        if identity not in people:
            raise UserError(
                f"{path}: identity {identity!r} has no image: correct the split, or give its images"
            )


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _notes(name: str, images: int, hidden: Sequence[str]) -> tuple[str, ...]:
    whole = _SETS[name].images
    notes = []
    if images != whole:
        notes.append(f"{images:,} images were found, the whole {name.upper()} has {whole:,}")
    if hidden:
        notes.append(hidden_note(hidden))
    return tuple(notes)
