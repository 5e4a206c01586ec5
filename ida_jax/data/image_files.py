"""Images where people have them: a folder, a list of paths, or a tar file; read when asked for.

N images, H height, W width.
"""

import os
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.errors import UserError
from ida_jax.files import require_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_TARS = (".tar", ".tgz", ".tar.gz")


class ImageFiles(Sequence[np.ndarray]):
    """N encoded images; `files[row]` is decoded to uint8 [H, W, 3] RGB.

    Attributes:
      names: the N images' paths inside the folder or tar, or as the list has them.
    """

    def __init__(self, names: Sequence[str], source: "_Folder | _Tar") -> None:
        self.names = tuple(names)
        self._source = source

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> np.ndarray:
        return decode(self.encoded(row), where=self.where(row))

    def encoded(self, row: int) -> bytes:
        """The image's bytes.

        Raises:
          UserError: they cannot be read.
        """
        return self._source.read(self.names[row])

    def where(self, row: int) -> str:
        """What messages call the image."""
        return self._source.where(self.names[row])


def decode(encoded: bytes, *, where: str) -> np.ndarray:
    """uint8 [H, W, 3] RGB of a JPEG, PNG or BMP, grey ones and CMYK converted.

    Raises:
      UserError: bytes that are no image.
    """
    import cv2

    data = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise UserError(f"image {where} cannot be decoded: replace or remove it")
    return image


def open_images(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> ImageFiles:
    """The images at a path.

    Args:
      path: a folder, whose images at any depth are taken, sorted by path; a .tar or .tgz, likewise;
        or a text file, a path a line and in its order, what follows white space passed over.
      root: the folder that a list's paths start from; the list's own if None.

    Raises:
      UserError: nothing there, a damaged tar, no images, or a list with an absent file (by line).
    """
    path = Path(path)
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        names = sorted(p.relative_to(path).as_posix() for p in found)
        return ImageFiles(_some(names, path), _Folder(path))
    require_file(path, what="images")
    if path.name.lower().endswith(_TARS):
        source = _Tar(path)
        return ImageFiles(_some(sorted(source.members), path), source)
    return _from_list(path, path.parent if root is None else Path(root))


def _some(names: list[str], path: Path) -> list[str]:
    if not names:
        raise UserError(f"{path} holds no images: expected {', '.join(SUFFIXES)} files")
    return names


def _from_list(path: Path, root: Path) -> ImageFiles:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no folder, no .tar, and no list of images: {error}") from error
    names = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = line.split()[0]
        if not (root / name).is_file():
            raise UserError(
                f"{path}:{number}: no image at {root / name}: name the folder that the paths start "
                "from (--root), or correct the list"
            )
        names.append(name)
    return ImageFiles(_some(names, path), _Folder(root))


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def where(self, name: str) -> str:
        return str(self._root / name)

    def read(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise UserError(f"image {self.where(name)} cannot be read: {error.strerror}") from error


class _Tar:
    """A tar file's images by their places in it; a compressed one is held in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held: dict[str, bytes] = {}
        self.members: dict[str, tuple[int, int]] = {}
        compressed = not path.name.lower().endswith(".tar")
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isfile() or not name.lower().endswith(SUFFIXES):
                        continue
                    self.members[name] = member.offset_data, member.size
                    if compressed:
                        self._held[name] = archive.extractfile(member).read()
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise UserError(f"{path} is not a whole tar file: {error}") from error
        self._size = path.stat().st_size
        self._file = None if compressed else path.open("rb")

    def where(self, name: str) -> str:
        return f"{name} of {self._path}"

    def read(self, name: str) -> bytes:
        if name in self._held:
            return self._held[name]
        offset, size = self.members[name]
        with self._lock:
            self._file.seek(offset)
            encoded = self._file.read(size)
        if len(encoded) < size:
            raise UserError(f"{self._path} ends within {name}: copy the file again")
        return encoded
