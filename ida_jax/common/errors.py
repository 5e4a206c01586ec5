"""How commands end: on a user's mistake, on a run that was stopped, on Ctrl-C."""

import io
import os
import sys
from collections.abc import Callable

_LONGEST = 1000


class UserError(ValueError):
    """A mistake that the user can fix.

    The message is one line that says what was given, what was expected and what to do. Names and
    values from users' files may be in it: control characters are escaped, so that they cannot drive
    a terminal, and of a very long message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split("\n"))
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST * 2 // 3]} … {line[-_LONGEST // 3 :]}"
        super().__init__(line)


class Stopped(Exception):
    """A run that was asked to stop, saved its state, and ends well.

    The message is one line that says how far it got and how to continue.
    """


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command's body and returns its exit code.

    A UserError becomes one line on stderr and the exit code 2; Ctrl-C one line and the shell's 130;
    Stopped one line and 0; a closed output the shell's 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without τ is no reason to fail
    try:
        run()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues from what was finished", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has gone, as `head` does; nor may the interpreter flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0
