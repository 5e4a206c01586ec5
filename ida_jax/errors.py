"""The one exception that stands for a user's mistake, and how commands end on it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one line that says what was given, what was expected and what to do.
    """


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command's body and says how it ended.

    A UserError becomes one line on stderr and the exit code 2; Ctrl-C one line and the shell's 130.
    """
    try:
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0
