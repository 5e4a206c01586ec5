"""LFW, CALFW and CPLFW: 10-fold accuracy of the set's own list by every method."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ida_jax.data.labelled_pairs import PairList, read_calfw_pairs, read_lfw_pairs
from ida_jax.data.sources.image_files import without_suffix
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.protocols.table import (
    Faces,
    NoOptions,
    Protocol,
    Request,
    file_inside,
    register,
    required_names,
    terms_of_people,
    unit_faces,
)
from ida_jax.protocols.verification import evaluate_kfold
from ida_jax.rescoring.rescorer import Rescorer

_LISTS = {"lfw": "pairs.txt", "calfw": "pairs_CALFW.txt", "cplfw": "pairs_CPLFW.txt"}


class _Listed(NamedTuple):
    """Unit faces, the person of each, and the set's list."""

    faces: Faces
    people: list[str]
    pair_list: PairList


def _read(request: Request, options: NoOptions) -> _Listed:
    names = [without_suffix(name) for name in required_names(request)]
    path = file_inside(request.files, _LISTS[request.protocol])
    if request.protocol == "lfw":
        names = [name if "/" in name else f"{_person(name)}/{name}" for name in names]
        pair_list = read_lfw_pairs(path, names)
    else:
        pair_list = read_calfw_pairs(path, names)
    # The same person is one unit of the bootstrap, in whatever folder the image is.
    people = [_person(name.rsplit("/", 1)[-1]) for name in names]
    return _Listed(unit_faces(request), people, pair_list)


def _evaluate(
    request: Request, options: NoOptions, data: _Listed, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    faces, bad, notes = data.faces
    _, labels = np.unique(data.people, return_inverse=True)
    methods = terms_of_people(faces, data.people, scorers)
    folds = int(data.pair_list.fold.max()) + 1
    evaluated = evaluate_kfold(
        faces, data.pair_list, methods, labels=labels, bad=bad, **request.bootstrap
    )
    return {f"{request.protocol}_{folds}fold": evaluated._replace(notes=notes)}


def _person(image: str) -> str:
    """George_W_Bush of George_W_Bush_0001."""
    return re.sub(r"_\d+$", "", image)


for _name, _file in _LISTS.items():
    register(
        Protocol(
            _name,
            files=_file,
            rows=f"images, named {'A/' * (_name == 'lfw')}A_0001.jpg",
            needs=("files",),
            flags=NoOptions,
            read=_read,
            evaluate=_evaluate,
        )
    )
