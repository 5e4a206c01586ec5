"""Any labelled pair list: TAR@FAR of every method.

N faces, P pairs.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.protocols.request import FARS, Faces, Request, unit_faces
from ida_jax.protocols.scored_pairs import evaluate_labelled_pairs
from ida_jax.protocols.table import FarOptions, Protocol, option, register
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.tables.labelled_scores import read_identities, read_labels
from ida_jax.tables.pair_lists import PairFile, convert_pairs


@dataclass(frozen=True)
class PairListOptions(FarOptions):
    """The list's further files."""

    labels: Path | None = option(None, "1 or 0 a pair", metavar="L")
    identities: Path | None = option(
        None, "both sides' identities; intervals are then over people", metavar="I"
    )


class _Listed(NamedTuple):
    """Faces, their pairs int [P, 2], bool [P], and both sides' identities [P, 2] if known."""

    faces: Faces
    pairs: np.ndarray
    same: np.ndarray
    identities: np.ndarray | None


def _read(request: Request, options: PairListOptions) -> _Listed:
    faces = unit_faces(request)
    names = request.embeddings.names
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npy"
        convert = partial(convert_pairs, request.files, path, rows=len(faces.embeddings))
        if request.names is not None or names is None:
            convert(names=names)
        else:
            try:  # names came along with E: the list may be of rows all the same
                convert(names=None)
            except UserError:
                convert(names=names)
        listed = PairFile(path)
        pairs = np.array(listed.read(0, listed.count))
    same = read_labels(options.labels)
    identities = None if options.identities is None else read_identities(options.identities)
    for file, rows in ((options.labels, same), (options.identities, identities)):
        if rows is not None and len(rows) != len(pairs):
            raise UserError(
                f"{file} has {len(rows)} rows and {request.files} has {len(pairs)} pairs: expected "
                "one a pair"
            )
    return _Listed(faces, pairs, same, identities)


def _evaluate(
    request: Request, options: PairListOptions, data: _Listed, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    faces, bad, notes = data.faces
    terms = {name: scorer.terms(faces) for name, scorer in scorers.items()}
    scores = pair_scores(faces, data.pairs, terms)
    for of_method in scores.values():
        of_method[bad[data.pairs].any(axis=1)] = np.nan
    evaluated = evaluate_labelled_pairs(
        scores, data.same, data.identities, fars=options.fars or FARS, **request.bootstrap
    )
    return {"pairs": evaluated._replace(notes=(*notes, *evaluated.notes))}


register(
    Protocol(
        "pairs",
        files="a pair list, rows of E or names (--labels)",
        rows="faces",
        needs=("files", "labels"),
        flags=PairListOptions,
        read=_read,
        evaluate=_evaluate,
    )
)
