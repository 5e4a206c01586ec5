"""Which files and members of archives are images: one rule for all readers.

What systems and editors leave beside images (`is_hidden`) is not an image, and is counted.
"""

from collections.abc import Sequence
from pathlib import Path

from ida_jax.common.errors import UserError

# What a data set keeps as it is (`data.sources.jpeg.check_image`); the others are decoded at once.
JPEG_AND_PNG = (".jpg", ".jpeg", ".png")
SUFFIXES = (*JPEG_AND_PNG, ".bmp", ".webp")
_NAMED = 5
# Of macOS, Windows and Synology's servers.
_LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir")
_MOST_BYTES = 1 << 29  # of one encoded image


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


def require_size(size: int, what: str) -> None:
    """Refuses an encoded image of more than 512 MiB."""
    if size > _MOST_BYTES:
        raise UserError(f"{what} has {size:,} bytes: expected at most {_MOST_BYTES:,}; remove it")


def without_suffix(name: str) -> str:
    """A name without its image suffix; other suffixes are part of the name."""
    return name.rpartition(".")[0] if is_image(name) else name


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


def size_and_time(path: Path) -> str:
    """A file's size and time of change, which differ once it has been changed."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return f"{status.st_size} {status.st_mtime_ns}"
