"""InsightFace's verification sets: a pickle of (2P encoded images, P times whether they match).

A pickle can run any code: it is read by `ida_jax.data.sources.plain_pickle`, which runs none.

P pairs.
"""

import csv
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file, written_whole
from ida_jax.data.labelled_pairs import read_lfw_pairs
from ida_jax.data.sources.image_files import ImageFiles, open_images
from ida_jax.data.sources.jpeg import check_image
from ida_jax.data.sources.plain_pickle import EXPECTED, Array, load_plain_pickle
from ida_jax.tables.text import canonical, delimiter_of, text_lines

_WORDS = {"1": True, "true": True, "0": False, "false": False}


class VerificationBin(NamedTuple):
    """A verification set.

    Attributes:
      images: 2P encoded images; pair i is of the images 2i and 2i + 1.
      same: bool [P], True for a genuine pair.
      where: names the image of a row in messages.
    """

    images: Sequence[bytes]
    same: np.ndarray
    where: Callable[[int], str]


def read_verification_bin(path: str | os.PathLike[str]) -> VerificationBin:
    """Reads a .bin file of any pickle protocol, written by Python 2 or 3, NumPy 1 or 2.

    Images are bytes, or arrays of them; matches are bools, 0 and 1, or an array of them.
    """
    path = Path(path)
    require_file(path, what="verification set")
    loaded = load_plain_pickle(path)
    try:
        images, same = (_items(part) for part in _items(loaded))
        images = _all_bytes(images, path.stat().st_size)
        if not all(isinstance(value, int) and value in (0, 1) for value in same):
            raise ValueError("a match that is neither 0 nor 1")
    except ValueError as error:
        raise UserError(f"{path} is not in this format ({error}): {EXPECTED}") from error
    if not same or len(images) != 2 * len(same):
        raise UserError(
            f"{path} holds {len(images)} images for {len(same)} pairs: expected two per pair, and "
            "one pair or more"
        )
    return VerificationBin(images, np.array(same, bool), lambda row: f"{path}, image {row}")


class WrittenBin(NamedTuple):
    """What was written: P, and the entries beside the images that were passed over as hidden."""

    pairs: int
    hidden: tuple[str, ...]


def open_bin(path: str | os.PathLike[str]) -> ImageFiles:
    """A set's 2P images in their order, named by their numbers from 0."""
    path = Path(path)
    content = read_verification_bin(path)
    return ImageFiles([f"{row:06}" for row in range(len(content.images))], _Bin(path, content))


class _Bin:
    def __init__(self, path: Path, found: VerificationBin) -> None:
        self._path, self._found = path, found

    def where(self, name: str) -> str:
        return self._found.where(int(name))

    def read(self, name: str) -> bytes:
        return self._found.images[int(name)]

    def stamps(self, names: Sequence[str]) -> list[str]:
        status = self._path.stat()
        return [f"{len(names)} {status.st_size} {status.st_mtime_ns}"]


def write_verification_bin(
    output: str | os.PathLike[str], *, images: str | os.PathLike[str], pairs: str | os.PathLike[str]
) -> WrittenBin:
    """Writes a .bin file of P pairs; the images' bytes are kept as they are.

    Args:
      images: what `open_images` takes: a folder, a list or a tar file.
      pairs: LFW's pairs.txt, or a .csv of the lines NAME,NAME,SAME (1 or 0, true or false), with or
        without a header. Names are the images' relative paths, their suffix may be left out.
    """
    files = open_images(images)
    stems = [os.path.splitext(name)[0] for name in files.names]
    if Path(pairs).suffix.lower() == ".csv":
        rows, same = _read_csv(Path(pairs), files.names, stems)
    else:
        rows, same, _ = read_lfw_pairs(pairs, stems)
    encoded = {}
    for row in sorted({int(row) for pair in rows for row in pair}):
        encoded[row] = files.encoded(row)
        problem = check_image(encoded[row]).problem
        if problem is not None:
            raise UserError(f"{files.where(row)}: the image {problem}")
    listed = [encoded[int(row)] for pair in rows for row in pair]
    with written_whole(output) as temporary, temporary.open("wb") as file:
        # Python 3.4 and newer read protocol 4; images in several pairs are written once.
        pickle.dump((listed, [bool(value) for value in same]), file, protocol=4)
    return WrittenBin(len(same), files.hidden)


def _read_csv(
    path: Path, names: Sequence[str], stems: Sequence[str]
) -> tuple[list[tuple[int, int]], list[bool]]:
    text = text_lines(path, what="pairs")
    row_of_name = {canonical(name): row for row, name in enumerate(stems)}
    row_of_name |= {canonical(name): row for row, name in enumerate(names)}
    try:
        rows = (f"{line}\n" for line in text)
        lines = list(csv.reader(rows, delimiter=delimiter_of("".join(text[:1]).encode())))
    except csv.Error as error:
        raise UserError(f"{path} is not a list of pairs: {error}") from error
    rows, same = [], []
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line]
        if not any(fields):
            continue
        if len(fields) != 3:
            raise UserError(f"{path}:{number}: {len(fields)} fields, expected NAME,NAME,SAME")
        value = _WORDS.get(fields[2].lower())
        if value is None and not rows and not {*fields[:2]} & row_of_name.keys():
            continue  # the header
        if value is None:
            raise UserError(f"{path}:{number}: same is {fields[2][:40]!r}, expected 1 or 0")
        for name in fields[:2]:
            if name not in row_of_name:
                raise UserError(f"{path}:{number}: {name[:80]!r} is not among the images")
        rows.append((row_of_name[fields[0]], row_of_name[fields[1]]))
        same.append(value)
    if not rows:
        raise UserError(f"{path} holds no pairs: expected lines NAME,NAME,SAME")
    return rows, same


def _items(value: Any) -> Sequence:
    if isinstance(value, Array):
        value = value.values.tolist() if isinstance(value.values, np.ndarray) else value.values
    if not isinstance(value, list | tuple):
        raise ValueError(f"{type(value).__name__} where a list was expected")
    return value


def _all_bytes(images: Sequence[Any], room: int) -> tuple[bytes, ...]:
    """Images as bytes; what is not bytes is copied once, and at most `room` bytes in all."""
    copies: dict[int, bytes] = {}
    found = []
    for image in images:
        if isinstance(image, bytes):
            found.append(image)
            continue
        if id(image) not in copies:
            values = image.values if isinstance(image, Array) else image
            is_bytes = isinstance(values, np.ndarray) and values.dtype == np.uint8
            if not is_bytes and not isinstance(values, bytearray):
                raise ValueError(f"{type(image).__name__} where an image's bytes were expected")
            room -= len(values)
            if room < 0:
                raise ValueError("more images than the file has bytes for")
            copies[id(image)] = bytes(values)
        found.append(copies[id(image)])
    return tuple(found)
