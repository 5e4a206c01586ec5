"""How commands begin and end: on a user's mistake, on a run that was stopped, on Ctrl-C."""

import codecs
import contextlib
import errno
import importlib.util
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_LONGEST = 1000


def printable(text: str) -> str:
    """The text as a terminal may have it: control characters from users' files are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class UserError(ValueError):
    """A mistake that the user can fix.

    The message is one line that says what was given, what was expected and what to do. Names and
    values from users' files may be in it: control characters are escaped, so that they cannot drive
    a terminal, and of a very long message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split("\n"))
        line = printable(line)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST * 2 // 3]} … {line[-_LONGEST // 3 :]}"
        super().__init__(line)


class Damaged(UserError):
    """A file that is no longer what was written: it has to be made, or copied, again."""


class Stopped(Exception):
    """A run that was asked to stop, saved its state, and ends well.

    The message is one line that says how far it got and how to continue.
    """


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C. Of KeyboardInterrupt itself CPython may note that it is not handled."""


class _Terminated(BaseException):
    """SIGTERM was received."""


# A full disk or quota, a file system of limited or no writing.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_LIMITS = (errno.EMFILE, errno.ENFILE)
# A failing disk, a network's file system that has gone.
_FAILING = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT)


# The extra whose wheels hold a module that only some commands need (setup.py).
_EXTRAS = {
    "array_record": "train",
    "cv2": "train",
    "grain": "train",
    "importlib_resources": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "flatbuffers": "interop",
    "onnx": "interop",
    "onnxruntime": "interop",
    "torch": "interop",
    "scann": "scann",
    "ray": "ray",
    "jax_cuda12_plugin": "plan-gpu",
}

_SAID = {
    number: f"{word}: the same command continues from what was finished"
    for number, word in ((signal.SIGINT, "\ninterrupted"), (signal.SIGTERM, "terminated"))
}


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command's body and returns its exit code.

    A UserError, or a fault of the machine such as a full disk or memory, becomes one line on stderr
    and the exit code 2; Ctrl-C and SIGTERM one line and the shell's 130 and 143; Stopped one line
    and 0; a closed output the shell's 141. A library of an extra that is not installed is named
    with the extra.
    """
    _in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without τ must not fail the command
    with _signals() as received:
        try:
            run()
            sys.stdout.flush()
        except UserError as error:
            return _ended(f"error: {error}", 2)
        except Stopped as stopped:
            return _ended(f"stopped: {stopped}", 0)
        except (KeyboardInterrupt, _Terminated):
            return _interrupted(received)
        except BrokenPipeError:
            # The reader of the output has gone, as `head` does; nor may the interpreter flush to
            # it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if received:  # a library has made another error of it, as modules that are imported do
                return _interrupted(received)
            extra = isinstance(error, ImportError) and _EXTRAS.get((error.name or "").split(".")[0])
            if extra:
                return _ended(f"error: {missing(error.name, extra)}", 2)
            if fault := _fault_of_the_machine(error):
                return _ended(f"error: {UserError(fault)}", 2)
            raise
    return 0


def _fault_of_the_machine(error: Exception) -> str | None:
    """What to say of memory, disks and files that fail; None of a mistake of the program's."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    exhausted = text.startswith("RESOURCE_EXHAUSTED: ")  # jax's, of a device's memory
    if exhausted or isinstance(error, MemoryError) or number == errno.ENOMEM:
        said = text.removeprefix("RESOURCE_EXHAUSTED: ").partition("\n")[0]
        more = "take smaller batches or blocks, or a machine with more"
        return f"not enough memory{f' ({said})' if said else ''}: {more}"
    if not isinstance(error, OSError):
        return None
    if number in _NO_ROOM:
        what = f"cannot write {error.filename}" if error.filename else "cannot write"
        return f"{what}: {error.strerror}; make room, and run the same command again"
    if number == errno.ENAMETOOLONG:
        return f"{error.filename}: {error.strerror}: give a shorter path"
    if number in _LIMITS:
        return f"{error.strerror}: raise the limit (ulimit -n), and run the same command again"
    if error.filename is not None or number in _FAILING:
        what = error.filename if error.filename is not None else "a file or folder"
        return (
            f"cannot use {what}: {error.strerror or error}; see that it is there and can be read "
            "and written, and run the same command again"
        )
    return None


def missing(module: str, extra: str) -> str:
    """What to do where an optional library is absent."""
    return f"this needs {module.split('.')[0]}: pip install 'ida_jax[{extra}]'"


def require_module(name: str) -> None:
    """Refuses, before any work, to go on without a library of an extra.

    Raises:
      UserError: it is not installed; the line says what to install.
    """
    if importlib.util.find_spec(name) is None:
        raise UserError(missing(name, _EXTRAS[name]))


def _in_utf8() -> None:
    """Starts the command again in Python's UTF-8 mode where file names would have to be ASCII.

    Such is the C locale with PYTHONUTF8=0: no name or flag beyond ASCII could be written down.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = os.path.basename(sys.argv[0]) == "ida-jax"
    is_command = script if spec is None else spec.name.startswith("ida_jax.")
    if is_command and codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _ended(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _interrupted(received: list[int]) -> int:
    number = received[0] if received else signal.SIGINT
    return _ended(_SAID[number], 128 + number)


def _leave(number: int) -> None:
    """Ends at once, where an exception would get lost. What is unfinished the next run removes."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, f"{_SAID[number]}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Has Ctrl-C and SIGTERM raise an exception each; yields those received."""
    received: list[int] = []
    ours, unraisable = os.getpid(), sys.unraisablehook

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:  # a forked worker ends as it would without this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(number)
        if _importing(frame):  # extension modules may abort on an exception
            _leave(number)
        raise _Interrupted if number == signal.SIGINT else _Terminated

    def on_unraisable(lost: "sys.UnraisableHookArgs") -> None:
        # The signal came while a callback of the collector, say, was running.
        if isinstance(lost.exc_value, _Interrupted | _Terminated):
            _leave(received[-1])
        unraisable(lost)

    usual = {signal.SIGINT: signal.default_int_handler}
    if not _joined():
        usual[signal.SIGTERM] = signal.SIG_DFL
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in usual.items():
            if signal.getsignal(number) is handler:
                before[number] = signal.signal(number, on_signal)
        sys.unraisablehook = on_unraisable
    try:
        yield received
    finally:
        if sys.unraisablehook is on_unraisable:
            sys.unraisablehook = unraisable
        for number, handler in before.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)


def _joined() -> bool:
    """Whether jax.distributed has a handler of SIGTERM already, which Python does not see."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
