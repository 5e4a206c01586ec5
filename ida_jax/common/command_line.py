"""What every command shares: flags by argparse, with mistakes as a UserError.

Flags are spelled with underscores, as --top_n is; --top-n is accepted too.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ida_jax.common.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, `UserError`; no flag may be abbreviated."""

    def __init__(self, command: str = "", *, description: str | None) -> None:
        super().__init__(
            prog=f"ida-jax {command}" if command else None,  # a script has a name of its own
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.register("type", Path, user_path)  # what type=Path stands for in every command

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, which `parse_args` calls, with either spelling of a flag."""
        self._given = underscored(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        # argparse misses a required flag before it looks at the one that was mistyped in its place.
        if message.startswith("the following arguments are required"):
            known = self._option_string_actions
            words = self._given[: [*self._given, "--"].index("--")]
            names = [word.partition("=")[0] for word in words if word.startswith("--")]
            # Without a near one it may be another parser's, as --config= of plan is.
            for name in (name for name in names if name not in known):
                if nearest(name, known):
                    message = self._unknown(name)
                    break
        elif message.startswith("unrecognized arguments: "):
            message = self._unknown(message.removeprefix("unrecognized arguments: ").split(" ")[0])
        raise UserError(f"{message}; see --help")

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        near = nearest(name, self._option_string_actions)
        return f"unknown flag '{name}'" + (f": did you mean {near}?" if near else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most alike; "" where none is near."""
    return next(iter(difflib.get_close_matches(name, known, 1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What follows "unknown NAME:": the nearest known name, or all of them where none is near."""
    near = nearest(name, known := list(known))
    return f"did you mean {near}?" if near else f"choose one of {', '.join(known)}"


def user_path(text: str) -> Path:
    """An argparse type: a path, with ~ for the home folder.

    A shell expands a ~ only at the beginning of a word, not in --data_dir=~/x.

    Raises:
      argparse.ArgumentTypeError: an empty path; an address such as gs://bucket/x; the home folder
        of an unknown user.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path: name a file or folder, or leave it out")
    if address := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        raise argparse.ArgumentTypeError(
            f"'{text}' is an address, not a file's path: mount the bucket as a folder (gcsfuse; "
            "Mountpoint for S3 to read from), or copy what is in it"
            if address[1].lower() in ("gs", "s3", "gcs", "s3a")
            else f"'{text}' is an address, not a file's path: copy the file and name the copy"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' names the home folder of an unknown user: give the whole path"
        ) from error


def underscored(arguments: Sequence[str]) -> list[str]:
    """The arguments with flags' names spelled with underscores: --top-n=5 becomes --top_n=5."""
    flags = list(arguments)
    for index, argument in enumerate(flags):
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            flags[index] = f"--{name.replace('-', '_')}{equals}{value}"
    return flags


def seed_number(text: str) -> int:
    """An argparse type: a seed of NumPy's, 0 or more."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number of 0 or more")
    return int(text)


def numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """An argparse type: numbers separated by commas, such as 1e-3,1e-4."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"'{text}': expected numbers separated by commas"
            ) from error

    return parse
