"""10-fold accuracy by every method: LFW, CALFW, CPLFW and verification sets (`.bin`).

LFW, CALFW and CPLFW have lists of named images. A verification set is InsightFace's form of the
same: the embeddings are those of its images, in their order.

P pairs.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import file_inside
from ida_jax.data.labelled_pairs import (
    PairList,
    consecutive_pairs,
    read_calfw_pairs,
    read_lfw_pairs,
)
from ida_jax.data.sources.image_names import without_suffix
from ida_jax.data.sources.verification_bin import read_verification_bin
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.protocols.insightface_rule import FOLDS, RuleOptions, with_insightface
from ida_jax.protocols.table import (
    Faces,
    LeftOut,
    Protocol,
    Request,
    left_out,
    register,
    required_names,
    terms_of_people,
    unit_faces,
)
from ida_jax.protocols.verification import OVER_PAIRS, evaluate_kfold
from ida_jax.rescoring.rescorer import Rescorer

_LISTS = {"lfw": "pairs.txt", "calfw": "pairs_CALFW.txt", "cplfw": "pairs_CPLFW.txt"}


class _Listed(NamedTuple):
    """Unit faces, the person of each face, and the list, without the pairs left out of it."""

    faces: Faces
    people: list[str]
    pair_list: PairList
    left_out: LeftOut


def _read(request: Request, options: RuleOptions) -> _Listed:
    names = [without_suffix(name) for name in required_names(request)]
    path = file_inside(request.files, _LISTS[request.protocol])
    if request.protocol == "lfw":
        names = [name if "/" in name else f"{_person(name)}/{name}" for name in names]
        pair_list = read_lfw_pairs(path, names)
    else:
        pair_list = read_calfw_pairs(path, names)
    people = _people(request)
    out = left_out(request.one_person, people, pair_list.pairs)
    pair_list = PairList(*(of_pairs[out.kept] for of_pairs in pair_list))
    return _Listed(unit_faces(request), people, pair_list, out)


def _evaluate(
    request: Request, options: RuleOptions, data: _Listed, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluation]:
    faces, bad, norms, notes = data.faces
    _, labels = np.unique(data.people, return_inverse=True)
    methods = terms_of_people(faces, norms, data.people, scorers)
    folds = int(data.pair_list.fold.max()) + 1
    evaluated = evaluate_kfold(
        faces,
        data.pair_list,
        methods,
        labels=labels,
        bad=bad,
        names=request.embeddings.names,
        groups=request.groups,
        **request.bootstrap,
    )
    name = f"{request.protocol}_{folds}fold"
    both = {name: evaluated._replace(notes=notes)}
    both = with_insightface(both, options.rule, data.faces, data.pair_list, name)
    return {variant: data.left_out.noted(of) for variant, of in both.items()}


def _people(request: Request) -> list[str]:
    """The person on each row of E: one unit of the bootstrap, whatever folder the image is in."""
    names = map(without_suffix, required_names(request))
    return [_person(name.rsplit("/", 1)[-1]) for name in names]


def _person(image: str) -> str:
    """George_W_Bush of George_W_Bush_0001."""
    return re.sub(r"_\d+$", "", image)


def _read_bin(request: Request, options: RuleOptions) -> tuple[Faces, np.ndarray]:
    """2 P unit faces, and whether a pair is genuine, bool [P]."""
    same = read_verification_bin(request.files).same
    rows = len(request.embeddings.embeddings)
    if rows != 2 * same.size:
        raise UserError(
            f"{request.path} has {rows} embeddings and {request.files} {2 * same.size} images: "
            f"expected those of ida-jax embed --images={request.files}"
        )
    if same.size < FOLDS:
        raise UserError(
            f"{request.files} has {same.size} pairs: {FOLDS} folds need at least {FOLDS}"
        )
    return unit_faces(request), same


def _evaluate_bin(
    request: Request,
    options: RuleOptions,
    data: tuple[Faces, np.ndarray],
    scorers: Mapping[str, Rescorer],
) -> dict[str, Evaluation]:
    (faces, bad, norms, notes), same = data
    pair_list = consecutive_pairs(same, folds=FOLDS)
    evaluated = evaluate_kfold(
        faces,
        pair_list,
        {name: scorer.terms(faces, norms=norms) for name, scorer in scorers.items()},
        # The set has no identities: each pair is a unit of its own.
        labels=np.repeat(np.arange(same.size), 2),
        bad=bad,
        **request.bootstrap,
    )
    name = f"{request.files.stem}_{FOLDS}fold"
    exact = {name: evaluated._replace(notes=(*notes, OVER_PAIRS))}
    return with_insightface(exact, options.rule, data[0], pair_list, name)


for _name, _file in _LISTS.items():
    register(
        Protocol(
            _name,
            files=_file,
            rows=f"images, named {'A/' * (_name == 'lfw')}A_0001.jpg",
            identities="people, A of A_0001.jpg",
            people=_people,
            failures=True,
            flags=RuleOptions,
            read=_read,
            evaluate=_evaluate,
        )
    )
register(
    Protocol(
        "bin",
        files="a verification set, X.bin",
        rows="its images: embed --images=X.bin",
        flags=RuleOptions,
        no_identities="a verification set says of pairs, not of images, whose they are",
        read=_read_bin,
        evaluate=_evaluate_bin,
    )
)
