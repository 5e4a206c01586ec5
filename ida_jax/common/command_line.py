"""What every command shares: flags by argparse, a wrong one a UserError."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from ida_jax.common.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, `UserError`; no flag may be abbreviated."""

    def __init__(self, *, description: str | None) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


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
