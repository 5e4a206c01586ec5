"""Images inside an archive, .tar, .tgz or .zip: checked when it is opened, read by their places.

A member's declared size is checked before anything is unpacked.
"""

import gzip
import lzma
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ida_jax.common.errors import UserError
from ida_jax.common.files import not_whole
from ida_jax.data.sources.image_names import (
    is_hidden,
    is_image,
    require_size,
    sayable,
    size_and_time,
)

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".zip")
_SHOWN = 200
# Damage, an odd compression, an encrypted member.
_ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError,
    NotImplementedError, OverflowError, struct.error,
)  # fmt: skip
# Images hardly shrink: what unpacks to more than this is not a .tgz of images.
_MOST_TIMES, _ROOM = 20, 64 << 20


class Tar:
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
        return [*names, size_and_time(self._path)]


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
            name = _image_name(member.name, hidden)
            if name is None or member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"{name} is a link, sparse or special: pack the files themselves")
            require_size(member.size, name[:_SHOWN])
            members[name] = member.offset_data, member.size
        end = archive.offset
    # tarfile takes a damaged header for the end, and what comes after it for nothing.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"no header and no end mark at byte {end}")
    return members, sorted(hidden)


def _image_name(member: str, hidden: set[str]) -> str | None:
    """An image's path inside the archive; None for another file. Hidden entries are noted."""
    name = member.removeprefix("./")
    parts = name.split("/")
    first = next((at for at, part in enumerate(parts) if is_hidden(part)), None)
    if first is not None:
        hidden.add("/".join(parts[: first + 1]))
        return None
    if not is_image(name):
        return None
    if name.startswith("/") or ".." in parts:
        raise ValueError(f"{name[:_SHOWN]!r} leads out of the archive")
    return name


class Zip:
    """A .zip's images by their names in it; of a repeated name the last counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        members, hidden = {}, set()
        try:
            self._archive = zipfile.ZipFile(path)
            for member in self._archive.infolist():
                name = _image_name(member.filename, hidden)
                if name is None:
                    continue
                if member.flag_bits & 1:
                    raise ValueError(f"{name[:_SHOWN]} is encrypted: unpack the archive yourself")
                require_size(member.file_size, name[:_SHOWN])
                members[name] = member
        except (*_ZIP_FAULTS, OSError) as error:
            raise _damaged(path, error) from error
        self.hidden = sorted(hidden)
        self.members = {sayable(name): members[name] for name in sorted(members)}

    def where(self, name: str) -> str:
        return f"{name} of {self._path}"

    def read(self, name: str) -> bytes:
        try:
            with self._lock, self._archive.open(self.members[name]) as member:
                # The size that was checked; what the archive says of it need not be true.
                return member.read(self.members[name].file_size)
        except (*_ZIP_FAULTS, OSError) as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"image {self.where(name)} cannot be read: {said}; copy or pack the archive again"
            ) from error

    def stamps(self, names: Sequence[str]) -> list[str]:
        return [*names, size_and_time(self._path)]


def _damaged(path: Path, error: Exception) -> UserError:
    said = not_whole(path, f"{path.suffix} file", error)
    return UserError(f"{said}; copy or pack it again")
