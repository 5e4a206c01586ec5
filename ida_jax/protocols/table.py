"""The table of protocols, what the command gives a protocol, and what several of them make of it.

An entry stands at the end of the file that evaluates the protocol. It says what the protocol needs,
which options it adds, how its files are read and how they are evaluated. The command
(`ida_jax.runs.protocol_command`) makes its flags, help and checks from the table, so that a
protocol is added by one file in this folder.

N faces, D embedding.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax import protocols
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_rows
from ida_jax.metrics.evaluation import Evaluation, with_ignored
from ida_jax.metrics.groups import FaceGroups
from ida_jax.metrics.ignored import between
from ida_jax.rescoring.methods import labels_among_anchors
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.embeddings import EmbeddingFile
from ida_jax.tables.identity_pairs import IdentityPairs, KnownPairs, pairs_among
from ida_jax.tables.parquet_files import row_place

FARS = (1e-3, 1e-4, 1e-5)


class Request(NamedTuple):
    """What is to be evaluated, whatever the protocol.

    Attributes:
      path: the file of embeddings.
      files: the protocol's files, or None.
      names: the file of names, or None.
      anchors: the folder of the anchors if they are a workdir's, or None.
      skip_bad: whether embeddings that are zero, NaN or infinite are passed over.
      one_person: the identities whose pairs count neither way, or None.
      groups: the faces' groups, or None.
      group_thresholds: whether figures at one threshold per group are wanted too.
    """

    protocol: str
    path: Path
    embeddings: EmbeddingFile
    files: Path | None = None
    names: Path | None = None
    anchors: Path | None = None
    skip_bad: bool = False
    one_person: IdentityPairs | None = None
    groups: FaceGroups | None = None
    group_thresholds: bool = False
    resamples: int = 1000
    seed: int = 0

    @property
    def bootstrap(self) -> dict[str, Any]:
        """The bootstrap's arguments."""
        return {"resamples": self.resamples, "seed": self.seed}


@dataclass(frozen=True)
class NoOptions:
    """The options of a protocol that adds none."""


class Protocol(NamedTuple):
    """An evaluation protocol.

    Attributes:
      name: the value of --protocol.
      files: what its files are, for the command's help.
      rows: what a row of the embeddings is, for the command's help.
      read: (request, its options) to the protocol's data, read and checked.
      evaluate: (request, its options, data, {method: Rescorer}) to {variant: figures}.
      needs: the options that are required, the command's or its own.
      flags: a frozen dataclass of its own options, each an `option`.
      identities: what --ignore_identity_pairs names in it; "" where the flag is refused.
      no_identities: why, then.
      people: (request) to the person on each row of E, by its name; None where it does not know.
      grouped: whether it gives FAR and TAR by the faces' groups (`Request.groups`).
      failures: whether it lists pairs to look at, by E's names.
    """

    name: str
    files: str
    rows: str
    read: Callable[[Request, Any], Any]
    evaluate: Callable[[Request, Any, Any, Mapping[str, Rescorer]], dict[str, Evaluation]]
    needs: tuple[str, ...] = ("files",)
    flags: type = NoOptions
    identities: str = ""
    no_identities: str = "it does not know whose faces it compares"
    people: Callable[[Request], Sequence[str] | None] = lambda request: None
    grouped: bool = False
    failures: bool = False


PROTOCOLS: dict[str, Protocol] = {}


def register(protocol: Protocol) -> None:
    """Adds an entry to the table."""
    PROTOCOLS[protocol.name] = protocol


def all_protocols() -> dict[str, Protocol]:
    """The table, with the entries of every file in this folder."""
    for module in pkgutil.iter_modules(protocols.__path__, f"{protocols.__name__}."):
        importlib.import_module(module.name)
    return PROTOCOLS


def option(
    default: Any, help: str, *, metavar: str | None = None, choices: tuple[str, ...] | None = None
) -> Any:
    """A field of a protocol's options, which becomes a flag of the command.

    The flag has the field's name and type: Path, str, int, float, bool or tuple[float, ...], or one
    of them | None.

    Args:
      choices: all permitted values; any value if None.
    """
    shown = {"help": help, "metavar": metavar, "choices": choices}
    return field(default=default, metadata=shown)


@dataclass(frozen=True)
class FarOptions:
    """The options of a protocol that reports TAR@FAR.

    Raises:
      UserError: a FAR outside (0, 1].
    """

    fars: tuple[float, ...] | None = option(None, "false accept rates", metavar="FAR,…")

    def __post_init__(self) -> None:
        for far in self.fars or ():
            if not 0 < far <= 1:
                raise UserError(f"--fars: {far:g} is not above 0 and at most 1")


class Faces(NamedTuple):
    """Unit rows of all embeddings.

    Attributes:
      embeddings: float32 [N, D], with a stand-in for each bad one.
      bad: bool [N].
      norms: float64 [N], those of the embeddings as they were given; NaN of a bad one.
      notes: how many are bad, if any.
    """

    embeddings: np.ndarray
    bad: np.ndarray
    norms: np.ndarray
    notes: tuple[str, ...]


def unit_faces(request: Request) -> Faces:
    """The request's embeddings as unit rows."""
    what = f"embeddings in {request.path}"
    given = request.embeddings.embeddings
    faces, bad, norms = unit_rows(
        given, skip_bad=request.skip_bad, what=what, place=row_place(request.path)
    )
    if not bad.any():
        return Faces(faces, bad, norms, ())
    faces[bad] = np.eye(1, faces.shape[1], dtype=np.float32)
    return Faces(faces, bad, norms, (f"{int(bad.sum()):,} faces without an embedding never match",))


def required_names(request: Request) -> Sequence[str]:
    """The embeddings' names, N."""
    if request.embeddings.names is None:
        raise UserError(
            f"{request.path} has no names, which --protocol={request.protocol} looks images "
            "up by: give --names=FILE, one per line in the embeddings' order"
        )
    return request.embeddings.names


def people_by_folder(request: Request) -> list[str]:
    """PERSON of the embeddings' names PERSON/…, N."""
    return [name.split("/")[0] for name in required_names(request)]


def terms_of_people(
    faces: np.ndarray, norms: np.ndarray, people: Sequence[str], scorers: Mapping[str, Rescorer]
) -> dict[str, FaceTerms]:
    """Every method's terms; people among named anchors are left out of their own support sets."""
    own = labels_among_anchors(people, scorers)
    return {name: scorer.terms(faces, labels=own, norms=norms) for name, scorer in scorers.items()}


class LeftOut(NamedTuple):
    """Which pairs of a list count.

    Attributes:
      known: the identities whose pairs do not, by their places among the distinct ones; None where
        all do.
      kept: bool [P], the pairs that do.
    """

    known: KnownPairs | None
    kept: np.ndarray

    def noted(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation of the other pairs, with the number of those left out."""
        return noted(evaluation, self.known, int(np.count_nonzero(~self.kept)))


def left_out(
    one_person: IdentityPairs | None, people: Sequence[str] | np.ndarray, pairs: ArrayLike
) -> LeftOut:
    """Which pairs of a list count.

    Args:
      one_person: the identities whose pairs do not.
      people: whose the N faces are, names or integers.
      pairs: int [P, 2], rows of the faces.

    Raises:
      UserError: the identities are none of these.
    """
    if one_person is None:
        return LeftOut(None, np.ones(len(pairs), bool))
    identities, labels = np.unique(np.asarray(people), return_inverse=True)
    known = pairs_among(one_person, identities)
    return LeftOut(known, ~between(labels[np.asarray(pairs)], known.codes))


def noted(evaluation: Evaluation, known: KnownPairs | None, pairs: int) -> Evaluation:
    """The evaluation with a note on the pairs that were left out of it; itself without a list."""
    if known is None:
        return evaluation
    return with_ignored(evaluation, pairs=pairs, note=known.note(pairs))
