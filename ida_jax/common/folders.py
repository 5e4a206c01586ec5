"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ida_jax.common.errors import UserError
from ida_jax.common.files import synchronise


@contextlib.contextmanager
def written_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place on success, or else is removed.

    A kill between the two renames leaves neither, and the same command makes the new one again.

    Raises:
      UserError: the folder around it does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        made = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error
    try:
        yield made
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)
        for file in made.iterdir():
            synchronise(file)
        synchronise(made)
        if path.is_dir():
            old = tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent)
            os.replace(path, old)
            os.replace(made, path)
            shutil.rmtree(old)
        else:
            os.replace(made, path)
        synchronise(path.parent)
    except OSError as error:
        reason = error.strerror or f"not all of it was written ({error}); make room"
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
