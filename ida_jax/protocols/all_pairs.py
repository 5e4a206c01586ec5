"""Every pair of the faces, TAR@FAR by every method; a face's person is the folder of its name."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.protocols.table import (
    FARS,
    FarOptions,
    Protocol,
    Request,
    register,
    required_names,
    terms_of_people,
    unit_faces,
)
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.rescoring.rescorer import Rescorer


class _People(NamedTuple):
    """The good faces, unit rows, the person of each, and how many were left out."""

    faces: np.ndarray
    people: np.ndarray
    left_out: int


def _read(request: Request, options: FarOptions) -> _People:
    names = required_names(request)
    for row, name in enumerate(names):
        if "/" not in name:
            raise UserError(
                f"row {row} of {request.path} is named {name}: expected PERSON/IMAGE, which "
                "says whose face it is"
            )
    faces, bad, _ = unit_faces(request)
    people = np.array([name.split("/")[0] for name in names])[~bad]
    identities = np.unique(people)
    if not 1 < identities.size < people.size:
        raise UserError(
            f"{request.path} has {people.size} faces of {identities.size} people by their "
            f"names, PERSON/IMAGE, such as {names[0]}: expected several people, and several images "
            "of one"
        )
    return _People(faces[~bad], people, int(bad.sum()))


def _evaluate(
    request: Request, options: FarOptions, data: _People, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    _, labels = np.unique(data.people, return_inverse=True)
    methods = terms_of_people(data.faces, data.people.tolist(), scorers)
    evaluated = evaluate_all_pairs(
        data.faces, labels, methods, fars=options.fars or FARS, **request.bootstrap
    ).evaluated
    notes = evaluated.notes
    if data.left_out:
        notes = (f"{data.left_out:,} faces without an embedding were left out", *notes)
    return {"all_pairs": evaluated._replace(notes=notes)}


register(
    Protocol(
        "all_pairs",
        files="none: every pair of E",
        rows="faces, named PERSON/IMAGE",
        needs=(),
        flags=FarOptions,
        read=_read,
        evaluate=_evaluate,
    )
)
