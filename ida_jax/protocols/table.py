"""Every protocol, one entry each, at the end of the file that it is evaluated in.

An entry says what the protocol needs, which options are its own, how its files are read and how
they are evaluated. The command (`ida_jax.runs.protocol_command`) makes its flags, help and checks
from the table, so that a protocol is added by one file in this folder.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ida_jax import protocols
from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.protocols.request import Request
from ida_jax.rescoring.rescorer import Rescorer


class Protocol(NamedTuple):
    """An evaluation protocol.

    Attributes:
      name: of --protocol.
      files: what its files are, for the command's help.
      rows: what a row of the embeddings is, for the command's help.
      needs: the options that must be given, of the command's or of its own.
      flags: a frozen dataclass of its own options, each an `option`.
      read: (request, its options) to the protocol's data, read and checked.
      evaluate: (request, its options, data, {method: Rescorer}) to {variant: figures}.
    """

    name: str
    files: str
    rows: str
    needs: tuple[str, ...]
    flags: type
    read: Callable[[Request, Any], Any]
    evaluate: Callable[[Request, Any, Any, Mapping[str, Rescorer]], dict[str, Evaluation]]


PROTOCOLS: dict[str, Protocol] = {}


def register(protocol: Protocol) -> None:
    """Adds an entry to the table."""
    PROTOCOLS[protocol.name] = protocol


def all_protocols() -> dict[str, Protocol]:
    """The table, with the entry of every file in this folder."""
    for module in pkgutil.iter_modules(protocols.__path__, f"{protocols.__name__}."):
        importlib.import_module(module.name)
    return PROTOCOLS


def option(
    default: Any, help: str, *, metavar: str | None = None, choices: tuple[str, ...] | None = None
) -> Any:
    """A field of a protocol's options, which is a flag of the command.

    The flag has the field's name and type: Path, str, int, float, bool or tuple[float, ...], or one
    of them | None.

    Args:
      default: where the flag is not given.
      help: the flag's.
      metavar: its value in the help.
      choices: all values that it may have; any where None.
    """
    shown = {"help": help, "metavar": metavar, "choices": choices}
    return field(default=default, metadata=shown)


@dataclass(frozen=True)
class NoOptions:
    """Of a protocol without options of its own."""


@dataclass(frozen=True)
class FarOptions:
    """Of a protocol that reports TAR@FAR.

    Raises:
      UserError: a FAR outside (0, 1].
    """

    fars: tuple[float, ...] | None = option(None, "false accept rates", metavar="FAR,…")

    def __post_init__(self) -> None:
        for far in self.fars or ():
            if not 0 < far <= 1:
                raise UserError(f"--fars: {far:g} is not above 0 and at most 1")
