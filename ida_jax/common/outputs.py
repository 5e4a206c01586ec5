"""What every command does before it writes: no input is overwritten, and no other job writes there.
And folders that are written whole; `ida_jax.common.files` writes files so.

A lock is a small file, .OUTPUT.lock beside an output or .lock in a folder, which names the process
that works there. On its own host the operating system knows whether that process is alive, and a
dead one's lock is taken over; across hosts nothing does, and the message says how to remove it.
Jobs of several processes take it once, in process 0.
"""

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ida_jax.common.errors import UserError
from ida_jax.common.files import synchronise
from ida_jax.common.shards import has_shards

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

# What `written_whole` and `written_folder` name what is not whole yet.
_UNFINISHED = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")

_MOMENT = 0.2  # seconds from making a lock to having written it, at most

Named = Mapping[str, str | os.PathLike[str] | None]


class Taken(UserError):
    """Another job writes there."""


@contextlib.contextmanager
def writing(outputs: Named, *, reading: Named, folder: Path | None = None) -> Iterator[None]:
    """A block in which this job alone writes its outputs, none of which it reads.

    What a killed job left unfinished at these outputs is removed first, and a folder that it had
    set aside is put back.

    Args:
      outputs: each file that is written, None where it is not, by the flag that names it.
      reading: each file or folder that is read, likewise.
      folder: the folder that holds all outputs, where it is locked as a whole (a workdir); made
        where it is not there, and removed again where nothing was written.

    Raises:
      UserError: an output that is an input, or another output; a folder that cannot be written.
      Taken: another job writes there.
    """
    refuse_overwriting(reading, outputs)
    with contextlib.ExitStack() as held:
        if folder is not None:
            _refuse_root("the folder to write", folder)
            held.enter_context(_folder(folder))
            held.enter_context(_locked(lock_in(folder), what=folder))
            _remove_unfinished(folder)
        else:
            for path in (Path(path) for path in outputs.values() if path is not None):
                held.enter_context(_locked(_lock_of(path), what=path))
                _put_back(_real(path))
                for beside in {path.absolute(), _real(path)}:
                    _remove_unfinished_of(beside)
        yield


def refuse_overwriting(inputs: Named, outputs: Named, *, folders: Named | None = None) -> None:
    """Refuses outputs that are inputs, by the files' identity: links and letter case included.

    And those that no output can be: the root folder, a folder in a file's place, and devices and
    pipes, whose names a new file would take (for root, even /dev/null's).

    Args:
      inputs: each file or folder that is read, None where it is not, by the flag that names it.
      outputs: each file that is written, likewise.
      folders: each folder that is written as a whole, likewise: it must neither hold an input nor
        lie in one.
    """
    read = {flag: Path(path) for flag, path in inputs.items() if path is not None}
    files = {flag: Path(path) for flag, path in outputs.items() if path is not None}
    whole = {flag: Path(path) for flag, path in (folders or {}).items() if path is not None}
    written = [*files.items(), *whole.items()]
    for number, (flag, path) in enumerate(written):
        _refuse_root(flag, path)
        if _is_device(path):
            kind = "file" if flag in outputs else "folder"
            raise UserError(f"{flag} is {path}, a device or a pipe: name a {kind}")
        if path.is_dir() and path.suffix and flag in outputs:
            raise UserError(f"{flag} is {path}, a folder: name a file")
        for other, source in read.items():
            if _same(path, source):
                raise UserError(
                    f"{flag} would overwrite {other}, {source}: name another file, which is not "
                    "read"
                )
        for other, second in written[:number]:
            if _same(path, second):
                raise UserError(
                    f"{flag} and {other} are one file, {path}: name a file for each of them"
                )
    for flag, folder in whole.items():
        for other, source in read.items():
            if within(source, folder):
                raise UserError(
                    f"{flag} would overwrite {folder}, which holds {other}, {source}: name another "
                    "folder"
                )
            if source.is_dir() and within(folder, source):
                raise UserError(
                    f"{flag} would write {folder} into {other}, {source}, where it would be read "
                    "the next time: name another folder"
                )


def _refuse_root(what: str, path: Path) -> None:
    if not _real(path).name:
        raise UserError(f"{what} is {path}, the root of all folders: name one in it")


def _is_device(path: Path) -> bool:
    """Or a pipe, or a link of the system's to an open file, as /dev/stdout is."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        return True
    folder = _real(path.parent)
    return folder == Path("/dev") or folder.parts[:2] == ("/", "proc")


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one is not there yet
        return _real(first) == _real(second)


def within(path: Path, folder: Path) -> bool:
    """Whether a path is below a folder, links followed; either may not be there."""
    return any(_same(parent, folder) for parent in _real(path).parents)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def lock_in(folder: Path) -> Path:
    """The lock of a folder that one job writes as a whole: that of a killed job stays."""
    return folder / ".lock"


def _lock_of(path: Path) -> Path:
    real = _real(path)
    return real.parent / f".{real.name}.lock"


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the folder; one that it made goes again where it is empty at the end."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def _locked(lock: Path, *, what: Path) -> Iterator[None]:
    try:
        handle = _take(lock, what=what)
    except OSError as error:
        raise _cannot_write(what, error) from error
    try:
        yield
    finally:
        # Removed while it is held, so that no other job locks a file that is about to go.
        lock.unlink(missing_ok=True)
        os.close(handle)


def _take(lock: Path, *, what: Path) -> int:
    """The open lock file, with this process in it."""
    while True:
        handle, made = _opened(lock)
        try:
            alone = _hold(handle)
            holder = {} if made else _holder(handle)
            here = holder.get("host") in (None, socket.gethostname())
            if alone is None:  # a file system without locks
                alone = not (here and _lives(holder.get("pid")))
            if not (alone and here):
                raise Taken(_taken(what, lock, holder, here))
            # It may have been removed by the process that held it when it was opened.
            if _is_at(handle, lock):
                mine = {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.time(),
                    "command": shlex.join(["python", *sys.orig_argv[1:]])[:1000],
                }
                try:
                    os.ftruncate(handle, 0)
                    os.lseek(handle, 0, os.SEEK_SET)
                    os.write(handle, json.dumps(mine).encode())
                    os.fsync(handle)  # for other hosts: a mounted bucket would keep it to itself
                except OSError:  # a full disk
                    lock.unlink(missing_ok=True)
                    raise
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _opened(lock: Path) -> tuple[int, bool]:
    """The lock file, and whether this process has made it: of several only one, on any host.

    That holds on file systems without locks too, or whose locks are those of one host.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            return os.open(lock, os.O_RDWR), False


def _hold(handle: int) -> bool | None:
    """Whether no living process holds the file; None where the file system cannot tell."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _holder(handle: int) -> dict:
    """What a lock says; nothing where its writer was killed before it said anything."""
    try:
        text = os.read(handle, 10_000)
        if not text:  # made a moment ago, or by one that was killed
            time.sleep(_MOMENT)
            text = os.read(handle, 10_000)
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found = found if isinstance(found, dict) else {}
    pid, host, since = (found.get(key) for key in ("pid", "host", "since"))
    fits = {
        "pid": type(pid) is int and 0 < pid < 1 << 31,
        "host": isinstance(host, str),
        "since": type(since) in (int, float) and 0 <= since < 1 << 40,
    }
    return {key: found[key] for key, whole in fits.items() if whole}


def _lives(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _taken(what: Path, lock: Path, holder: dict, here: bool) -> str:
    since, pid, host = (holder.get(key) for key in ("since", "pid", "host"))
    age = f", for {_age(time.time() - since)}" if isinstance(since, int | float) else ""
    who = f"process {pid}" if pid else "another process"
    who += f" on {host}{age}" if host else ""
    if here:
        return f"{what} is being written by {who}: wait for it, or name another output"
    return (
        f"{what} is being written by {who}: wait for it, or name another output; if that process "
        f"has ended, delete {lock}"
    )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


@contextlib.contextmanager
def written_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place on success, or else is removed.

    No rename replaces a folder that holds anything, so the old one is set aside for a moment. Where
    a kill leaves it there, the next job that writes to `path` puts it back before it begins.
    """
    path = _real(Path(path))
    try:
        made = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        _put_back(path)
        yield made
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)
        for file in made.iterdir():
            synchronise(file)
        synchronise(made)
        if path.is_dir():
            os.replace(path, _aside(path))
        os.replace(made, path)
        synchronise(path.parent)
    except OSError as error:
        reason = error.strerror or f"not all of it was written ({error}); make room"
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        _put_back(path)
        shutil.rmtree(made, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.tmp")


def _put_back(path: Path) -> None:
    """Removes the folder that was set aside, or puts it back where no new one is."""
    aside = _aside(path)
    if not aside.is_dir():
        return
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(aside, path)


def _remove_unfinished_of(output: Path) -> None:
    for left in output.parent.glob(f".{_escaped(output.name)}.*"):
        if left.is_dir():
            if _UNFINISHED.fullmatch(left.name):  # of `written_folder`
                shutil.rmtree(left, ignore_errors=True)
            elif not has_shards(left):  # which others may be making
                _remove_unfinished(left)
        elif _UNFINISHED.fullmatch(left.name):
            left.unlink(missing_ok=True)


def _remove_unfinished(folder: Path, *, below: int = 2) -> None:
    """Removes it from a folder that this job holds, and from as many levels of folders below.

    What another job may be writing there stays: beside it is the lock of its output or folder, and
    parts that are shared out are in a hidden folder.
    """
    try:
        found = list(os.scandir(folder))
    except OSError:  # this job has written nothing where it may not read
        return
    names = {entry.name for entry in found}
    for entry in found:
        unfinished = _UNFINISHED.fullmatch(entry.name)
        if entry.is_dir(follow_symlinks=False):
            if below and not entry.name.startswith(".") and not lock_in(Path(entry)).exists():
                _remove_unfinished(Path(entry), below=below - 1)
        elif unfinished and f".{unfinished[1]}.lock" not in names:
            Path(entry).unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; name a writable folder")
