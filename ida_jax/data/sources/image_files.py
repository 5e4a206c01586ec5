"""Images from a folder, a list of paths, or a tar file, read when asked for.

What systems and editors leave beside images (`is_hidden`) is not an image, and is counted.

N images, H height, W width.
"""

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
import threading
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.data.sources.jpeg import ImageFault, image_layout
from ida_jax.tables.text import text_lines

# What a data set keeps as it is (`data.sources.jpeg.check_image`); the others are decoded at once.
JPEG_AND_PNG = (".jpg", ".jpeg", ".png")
SUFFIXES = (*JPEG_AND_PNG, ".bmp", ".webp")
_TARS = (".tar", ".tgz", ".tar.gz")
_SHOWN = 200
_NAMED = 5
# Of macOS, Windows and Synology's servers.
_LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir")
_MOST_BYTES = 1 << 29  # of one encoded image
# Images hardly shrink: what unpacks to more than this is not a .tgz of images.
_MOST_TIMES, _ROOM = 20, 64 << 20


def is_image(name: str) -> bool:
    """Whether a file name has one of the image suffixes, in either case."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file's or folder's name is hidden, or one that systems leave beside images."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _LITTER


def hidden_note(names: Sequence[str]) -> str:
    """What a command prints of hidden entries: how many, and the first."""
    # Their names need not be text that can be printed.
    first = ", ".join(name if name.isprintable() else ascii(name) for name in names[:_NAMED])
    count = f"skipped {len(names):,} hidden {'entry' if len(names) == 1 else 'entries'}"
    return f"{count}: {first}{', …' if len(names) > _NAMED else ''}"


def read_image(path: str | os.PathLike[str]) -> bytes:
    """An image file's bytes."""
    try:
        # A pipe would else be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"image {os.fspath(path)} is a pipe or a device: remove it")
            _require_size(status.st_size, f"image {os.fspath(path)}")
            return file.read()
    except OSError as error:
        raise UserError(f"image {os.fspath(path)} cannot be read: {error.strerror}") from error


def _require_size(size: int, what: str) -> None:
    if size > _MOST_BYTES:
        raise UserError(f"{what} has {size:,} bytes: expected at most {_MOST_BYTES:,}; remove it")


def without_suffix(name: str) -> str:
    """A name without its image suffix; other suffixes are part of the name."""
    return name.rpartition(".")[0] if is_image(name) else name


class ImageFiles(Sequence[np.ndarray]):
    """N encoded images; `files[row]` is decoded to uint8 [H, W, 3] RGB. Threads may share it.

    Attributes:
      names: the N images' distinct paths inside the folder or tar, or as the list has them.
      hidden: the entries of the folder or tar that were passed over as hidden, sorted.
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
        a .tar or .tgz, likewise (the latter is unpacked to a temporary file); or a text file, a
        path a line and in its order. More fields may follow the path after a tab or a space: a list
        of landmarks is a list of images.
      root: the folder that a list's paths start from; the list's own if None.

    Raises:
      UserError: nothing there, a damaged tar, no images, or a list with an absent or repeated file
        (by line).
    """
    path = Path(path)
    is_tar = path.name.lower().endswith(_TARS)
    if root is not None and (is_tar or path.is_dir()):
        raise UserError(f"--root={root} is for lists of images, {path} is not a list: leave it out")
    if path.is_dir():
        names, hidden = _images_in(path)
        return ImageFiles(_some(names, path), _Folder(path), hidden=hidden)
    require_file(path, what="images")
    if is_tar:
        source = _Tar(path)
        return ImageFiles(_some(source.members, path), source, hidden=source.hidden)
    if path.suffix.lower() == ".zip":
        raise UserError(f"{path} is a .zip, which is not read: unpack it, and give the folder")
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


def sayable(name: str) -> str:
    """The name, refused where it cannot stand on a line of a text file."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {name!r} is not UTF-8: rename it") from error
    if name != name.strip() or len(name.splitlines()) != 1:
        raise UserError(
            f"the file name {name!r} has a line break, or blanks at its ends: rename it"
        )
    return name


def _listed(path: Path, root: Path) -> dict[str, int]:
    """A list's names with their lines."""
    try:
        # A file's path is found in the form in which the disk has it.
        lines = text_lines(path, what="images", normal=False)
    except UserError as error:
        raise UserError(f"{error}; images are a folder, a .tar or .tgz, or such a list") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        name = _path_of(line, root)
        if not name:
            raise UserError(f"{where} is blank: expected an image's path")
        if not os.path.isfile(root / name):
            raise UserError(
                f"{where}: no image at {str(root / name)[:_SHOWN]!r}: correct the list, or name "
                "the folder that its paths start from (--root)"
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
        return [f"{name} {_size_and_time(self._root / name)}" for name in names]


class _Tar:
    """A tar file's images by their places in it; a compressed one is unpacked first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = _plain(path)
        try:
            members, self.hidden = _members(self._file)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise _damaged(path, error) from error
        self.members = {sayable(name): members[name] for name in sorted(members)}

    def where(self, name: str) -> str:
        return f"{name} of {self._path}"

    def read(self, name: str) -> bytes:
        offset, size = self.members[name]
        try:
            with self._lock:
                self._file.seek(offset)
                encoded = self._file.read(size)
        except OSError as error:
            raise UserError(f"image {self.where(name)} cannot be read: {error.strerror}") from error
        if len(encoded) < size:
            raise UserError(f"{self._path} ends within {name}: copy the file again")
        return encoded

    def stamps(self, names: Sequence[str]) -> list[str]:
        return [*names, _size_and_time(self._path)]


def _plain(path: Path) -> BinaryIO:
    """The tar itself, or a temporary file of what it unpacks to."""
    try:
        file = path.open("rb")
        compressed = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not compressed:
        return file
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (it is read as long as the images are)
    try:
        with file, gzip.open(path) as stream:
            most = _MOST_TIMES * path.stat().st_size + _ROOM
            while chunk := stream.read(1 << 20):
                unpacked.write(chunk)
                if unpacked.tell() > most:
                    raise UserError(
                        f"{path} unpacks to more than {_MOST_TIMES} times its size, which images "
                        "do not: unpack it yourself, and give the folder"
                    )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise UserError(
            f"cannot unpack {path} to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
            "folder with room"
        ) from error
    return unpacked


def _members(file: BinaryIO) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The images' places, {name: (offset, size)}, and the hidden entries.

    Of a repeated name the last counts, as in tar; of a hidden folder the folder alone.
    """
    members, hidden = {}, set()
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.size < 0:
                raise ValueError(f"a negative size at byte {member.offset}")
            name = member.name.removeprefix("./")
            parts = name.split("/")
            first = next((at for at, part in enumerate(parts) if is_hidden(part)), None)
            if first is not None:
                hidden.add("/".join(parts[: first + 1]))
                continue
            if member.isdir() or not is_image(name):
                continue
            if name.startswith("/") or ".." in parts:
                raise ValueError(f"{name[:_SHOWN]!r} leads out of the archive")
            if not member.isreg() or member.issparse():
                raise ValueError(f"{name} is a link, sparse or special: pack the files themselves")
            _require_size(member.size, name[:_SHOWN])
            members[name] = member.offset_data, member.size
        end = archive.offset
    # tarfile takes a damaged header for the end, and what comes after it for nothing.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"no header and no end mark at byte {end}")
    return members, sorted(hidden)


def _damaged(path: Path, error: Exception) -> UserError:
    said = " ".join(str(error).split())
    return UserError(f"{path} is not a whole tar file: {said}; copy or pack it again")


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return f"{status.st_size} {status.st_mtime_ns}"
