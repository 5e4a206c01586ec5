"""Images from a folder, a list of paths, or an archive, read when asked for.

N images, H height, W width.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.data.sources.image_archives import SUFFIXES as ARCHIVES
from ida_jax.data.sources.image_archives import Tar, Zip
from ida_jax.data.sources.image_names import (
    SUFFIXES,
    is_hidden,
    is_image,
    require_size,
    sayable,
    size_and_time,
)
from ida_jax.data.sources.jpeg import ImageFault, image_layout
from ida_jax.tables.text import text_lines

_SHOWN = 200


def read_image(path: str | os.PathLike[str]) -> bytes:
    """An image file's bytes."""
    try:
        # A pipe would else be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"image {os.fspath(path)} is a pipe or a device: remove it")
            require_size(status.st_size, f"image {os.fspath(path)}")
            return file.read()
    except OSError as error:
        raise UserError(f"image {os.fspath(path)} cannot be read: {error.strerror}") from error


class ImageFiles(Sequence[np.ndarray]):
    """N encoded images; `files[row]` is decoded to uint8 [H, W, 3] RGB. Threads may share it.

    Attributes:
      names: the N images' distinct paths inside the folder or archive, or as the list has them.
      hidden: the entries of the folder or archive that were passed over as hidden, sorted.
    """

    def __init__(
        self, names: Sequence[str], source: "_Source", *, hidden: Sequence[str] = ()
    ) -> None:
        self.names = tuple(names)
        self.hidden = tuple(hidden)
        self._source = source

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> np.ndarray:
        return decode(self.encoded(row), where=self.where(row))

    def encoded(self, row: int) -> bytes:
        """The image's bytes."""
        return self._source.read(self.names[row])

    def where(self, row: int) -> str:
        """What messages call the image."""
        return self._source.where(self.names[row])

    def stamp(self) -> str:
        """Hex digits that differ once an image has been changed, by names, sizes and times."""
        digest = hashlib.sha256()
        for text in self._source.stamps(self.names):
            digest.update(f"{text}\n".encode())
        return digest.hexdigest()


def decode(encoded: bytes, *, where: str) -> np.ndarray:
    """uint8 [H, W, 3] RGB of a JPEG, PNG, BMP or WebP, grey ones and CMYK converted.

    Raises:
      UserError: bytes that are not an image, or of more than `jpeg.MOST_PIXELS` pixels; a JPEG
        without its end.
    """
    import cv2

    try:
        # Of a JPEG without its end, what is missing would be grey.
        image_layout(encoded)
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except ImageFault as fault:
        raise UserError(
            f"image {where} cannot be decoded: it {fault}; replace or remove it"
        ) from fault
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"image {where} cannot be decoded: replace or remove it")
    return image


def open_images(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> ImageFiles:
    """The images at a path.

    Args:
      path: a folder, whose images at any depth are taken, sorted by path, hidden ones passed over;
        a .tar, .tgz or .zip, likewise (a .tgz is unpacked to a temporary file); or a text file, a
        path a line and in its order. More fields may follow the path after a tab or a space: a list
        of landmarks is a list of images.
      root: the folder that a list's paths start from; the list's own if None.
    """
    path = Path(path)
    is_archive = path.name.lower().endswith(ARCHIVES)
    if root is not None and (is_archive or path.is_dir()):
        raise UserError(f"--root={root} is for lists of images, {path} is not a list: leave it out")
    if path.is_dir():
        names, hidden = _images_in(path)
        return ImageFiles(_some(names, path), _Folder(path), hidden=hidden)
    require_file(path, what="images")
    if is_archive:
        source = (Zip if path.suffix.lower() == ".zip" else Tar)(path)
        return ImageFiles(_some(source.members, path), source, hidden=source.hidden)
    root = path.parent if root is None else Path(root)
    return ImageFiles(_some(_listed(path, root), path), _Folder(root))


def _some(names: Sequence[str], path: Path) -> Sequence[str]:
    if not names:
        raise UserError(f"{path} holds no images: expected {', '.join(SUFFIXES)} files")
    return names


def _images_in(folder: Path) -> tuple[list[str], list[str]]:
    """The images' paths and those of hidden entries, sorted."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    names, hidden = [], []
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(current)
        within = Path(current).relative_to(folder)
        passed = [name for name in (*folders, *files) if is_hidden(name)]
        hidden += [(within / name).as_posix() for name in passed]
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in folders:
            link = os.path.join(current, name)
            if os.path.islink(link) and _is_within(real, os.path.realpath(link)):
                raise UserError(f"{link} leads back to a folder around it: remove this link")
        images = [name for name in files if is_image(name) and not is_hidden(name)]
        names += [sayable((within / name).as_posix()) for name in images]
    return sorted(names), sorted(hidden)


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _listed(path: Path, root: Path) -> dict[str, int]:
    """A list's names with their lines."""
    try:
        # A file's path is found in the form in which the disk has it.
        lines = text_lines(path, what="images", normal=False)
    except UserError as error:
        raise UserError(
            f"{error}; images are a folder, a .tar, .tgz or .zip, or such a list"
        ) from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        name = _path_of(line, root)
        if not name:
            raise UserError(f"{where} is blank: expected an image's path")
        if not os.path.isfile(root / name):
            raise UserError(
                f"{where}: no image at {str(root / name)[:_SHOWN]!r}: correct the list; its "
                "paths start from its own folder, or in embed from --root"
            )
        if name in names:
            raise UserError(f"{where}: {name} is on line {names[name]} too, expected it once")
        names[name] = number
    return names


def _path_of(line: str, root: Path) -> str:
    """The line's path: up to a tab, the whole line where there is such a file, or up to a space.

    Accents are as the disk has them, which may be in Unicode's other form.
    """
    line = line.strip()
    if "\t" in line or not line:
        return _on_disk(line.split("\t")[0].strip(), root)
    whole = _on_disk(line, root)
    return whole if os.path.isfile(root / whole) else _on_disk(line.split()[0], root)


def _on_disk(name: str, root: Path) -> str:
    if name.isascii():
        return name
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.isfile(root / form)), name)


class _Source(Protocol):
    """Where encoded images are read from, by name."""

    def where(self, name: str) -> str: ...
    def read(self, name: str) -> bytes: ...
    def stamps(self, names: Sequence[str]) -> list[str]: ...


class _Folder:
    """Files by their paths from a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def where(self, name: str) -> str:
        return str(self._root / name)

    def read(self, name: str) -> bytes:
        return read_image(self._root / name)

    def stamps(self, names: Sequence[str]) -> list[str]:
        return [f"{name} {size_and_time(self._root / name)}" for name in names]
