"""A verification set (`.bin`): 10-fold accuracy by every method.

The embeddings are those of the set's images, in their order.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data.labelled_pairs import consecutive_pairs
from ida_jax.data.sources.verification_bin import read_verification_bin
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.protocols.table import Faces, NoOptions, Protocol, Request, register, unit_faces
from ida_jax.protocols.verification import OVER_PAIRS, evaluate_kfold
from ida_jax.rescoring.rescorer import Rescorer

_FOLDS = 10


class _Set(NamedTuple):
    """2 P unit faces, and whether each two of them are of one person, bool [P]."""

    faces: Faces
    same: np.ndarray


def _read(request: Request, options: NoOptions) -> _Set:
    same = read_verification_bin(request.files).same
    rows = len(request.embeddings.embeddings)
    if rows != 2 * same.size:
        raise UserError(
            f"{request.path} has {rows} embeddings and {request.files} {2 * same.size} images: "
            f"expected those of python -m ida_jax.embed --images={request.files}"
        )
    if same.size < _FOLDS:
        raise UserError(
            f"{request.files} has {same.size} pairs: {_FOLDS} folds need at least {_FOLDS}"
        )
    return _Set(unit_faces(request), same)


def _evaluate(
    request: Request, options: NoOptions, data: _Set, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    faces, bad, notes = data.faces
    evaluated = evaluate_kfold(
        faces,
        consecutive_pairs(data.same, folds=_FOLDS),
        {name: scorer.terms(faces) for name, scorer in scorers.items()},
        # The set has no identities: each pair is a unit of its own.
        labels=np.repeat(np.arange(data.same.size), 2),
        bad=bad,
        **request.bootstrap,
    )
    name = f"{request.files.stem}_{_FOLDS}fold"
    return {name: evaluated._replace(notes=(*notes, OVER_PAIRS))}


register(
    Protocol(
        "bin",
        files="a verification set, X.bin",
        rows="its images: embed --images=X.bin",
        needs=("files",),
        flags=NoOptions,
        read=_read,
        evaluate=_evaluate,
    )
)
