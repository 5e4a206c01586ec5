"""TAR@FAR by every method: a labelled pair list, or every pair of the faces.

Where every pair is taken, a face's person is the folder of its name.

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
from ida_jax.data.labelled_pairs import PairList, contiguous_folds
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.groups import FaceGroups
from ida_jax.metrics.roc import SplitScores
from ida_jax.protocols.failures import (
    decided_at,
    described,
    failures_of_list,
    firm_thresholds,
    log_densities,
)
from ida_jax.protocols.group_figures import with_listed_groups
from ida_jax.protocols.insightface_rule import (
    FOLDS,
    RULES,
    RuleOptions,
    check_rule,
    with_insightface,
)
from ida_jax.protocols.table import (
    FARS,
    Faces,
    FarOptions,
    LeftOut,
    Protocol,
    Request,
    noted,
    option,
    people_by_folder,
    register,
    required_names,
    terms_of_people,
    unit_faces,
)
from ida_jax.protocols.verification import evaluate_all_pairs, evaluate_labelled_pairs
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.tables.identity_pairs import KnownPairs, ignored_rows, pairs_among
from ida_jax.tables.labelled_scores import Identities, read_labels, read_named_identities
from ida_jax.tables.pair_lists import PairFile, convert_pairs


@dataclass(frozen=True)
class PairListOptions(FarOptions, RuleOptions):
    """The list's other files, and the rule; InsightFace's takes ten folds of the list as it is."""

    labels: Path | None = option(None, "1 or 0 a pair", metavar="L")
    identities: Path | None = option(
        None, "both sides' identities; intervals are then over people", metavar="I"
    )


class _Listed(NamedTuple):
    """Faces, their pairs int [P, 2], bool [P], and both sides' identities [P, 2] if known.

    Without the pairs that are left out.
    """

    faces: Faces
    pairs: np.ndarray
    same: np.ndarray
    identities: np.ndarray | None
    left_out: LeftOut


def _read_listed(request: Request, options: PairListOptions) -> _Listed:
    faces = unit_faces(request)
    names = request.embeddings.names
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npy"
        convert = partial(convert_pairs, request.files, path, rows=len(faces.embeddings))
        if request.names is not None or names is None:
            convert(names=names)
        else:
            try:  # E has names of its own, but the list may still be of rows
                convert(names=None)
            except UserError:
                convert(names=names)
        listed = PairFile(path)
        pairs = np.array(listed.read(0, listed.count))
    same = read_labels(options.labels)
    identities = None if options.identities is None else read_named_identities(options.identities)
    codes = None if identities is None else identities.codes
    for file, rows in ((options.labels, same), (options.identities, codes)):
        if rows is not None and len(rows) != len(pairs):
            raise UserError(
                f"{file} has {len(rows)} rows and {request.files} has {len(pairs)} pairs: expected "
                "one per pair"
            )
    out = _left_out(request, identities, len(pairs))
    kept = out.kept
    return _Listed(faces, pairs[kept], same[kept], None if codes is None else codes[kept], out)


def _left_out(request: Request, identities: Identities | None, pairs: int) -> LeftOut:
    if request.one_person is None:
        return LeftOut(None, np.ones(pairs, bool))
    if identities is None:
        raise UserError(
            "--ignore_identity_pairs needs --identities=I, which says whose faces the pairs are of"
        )
    known, out = ignored_rows(request.one_person, identities)
    return LeftOut(known, ~out)


def _evaluate_listed(
    request: Request, options: PairListOptions, data: _Listed, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluation]:
    faces, bad, norms, notes = data.faces
    listed = None
    if options.rule != RULES[0]:
        listed = PairList(data.pairs, data.same, contiguous_folds(len(data.pairs), FOLDS))
        check_rule(options.rule, listed)
    terms = {name: scorer.terms(faces, norms=norms) for name, scorer in scorers.items()}
    scores = pair_scores(faces, data.pairs, terms)
    for of_method in scores.values():
        of_method[bad[data.pairs].any(axis=1)] = np.nan
    fars = options.fars or FARS
    evaluated = evaluate_labelled_pairs(
        scores, data.same, data.identities, fars=fars, **request.bootstrap
    )
    if request.groups is not None:
        evaluated = with_listed_groups(
            evaluated, scores, data.same, data.identities, request.groups.listed(data.pairs),
            group_thresholds=request.group_thresholds, fars=fars, **request.bootstrap,
        )  # fmt: skip
    split = {name: SplitScores(of[data.same], of[~data.same]) for name, of in scores.items()}
    far, thresholds = firm_thresholds(split, fars)
    failures = described(
        failures_of_list(scores, data.same, data.pairs, thresholds),
        faces,
        request.embeddings.names or [f"row {row}" for row in range(len(faces))],
        decided=decided_at(far),
        densities=log_densities(terms),
        bad=bad,
        groups=request.groups,
    )
    both = {"pairs": evaluated._replace(failures=failures, notes=(*notes, *evaluated.notes))}
    if listed is not None:
        both = with_insightface(both, options.rule, data.faces, listed, f"pairs_{FOLDS}fold")
    return {variant: data.left_out.noted(of) for variant, of in both.items()}


class _People(NamedTuple):
    """The good faces, unit rows, their norms, names, people and groups, and how many are bad.

    And the people who are one person under two names, if the request lists them.
    """

    faces: np.ndarray
    norms: np.ndarray
    names: list[str]
    people: np.ndarray
    groups: FaceGroups | None
    left_out: int
    one_person: KnownPairs | None


def _read_people(request: Request, options: FarOptions) -> _People:
    names = required_names(request)
    for row, name in enumerate(names):
        if "/" not in name:
            raise UserError(
                f"row {row} of {request.path} is named {name}: expected PERSON/IMAGE, which "
                "says whose face it is"
            )
    faces, bad, norms, _ = unit_faces(request)
    people = np.array(people_by_folder(request))[~bad]
    identities = np.unique(people)
    if not 1 < identities.size < people.size:
        raise UserError(
            f"{request.path} has {people.size} faces of {identities.size} people by their "
            f"names, PERSON/IMAGE, such as {names[0]}: expected several people, and several images "
            "of one"
        )
    known = None if request.one_person is None else pairs_among(request.one_person, identities)
    groups = None if request.groups is None else request.groups.rows(~bad)
    good = [names[row] for row in np.flatnonzero(~bad)]
    return _People(faces[~bad], norms[~bad], good, people, groups, int(bad.sum()), known)


def _evaluate_all(
    request: Request, options: FarOptions, data: _People, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluation]:
    _, labels = np.unique(data.people, return_inverse=True)
    methods = terms_of_people(data.faces, data.norms, data.people.tolist(), scorers)
    everything = evaluate_all_pairs(
        data.faces,
        labels,
        methods,
        fars=options.fars or FARS,
        ignored=None if data.one_person is None else data.one_person.codes,
        groups=data.groups,
        group_thresholds=request.group_thresholds,
        **request.bootstrap,
    )
    evaluated = noted(everything.evaluated, data.one_person, everything.ignored)
    notes = evaluated.notes
    if data.left_out:
        notes = (f"{data.left_out:,} faces without an embedding were left out", *notes)
    failures = described(
        everything.listed,
        data.faces,
        data.names,
        decided=decided_at(everything.changed_far),
        densities=log_densities(methods),
        groups=data.groups,
    )
    return {"all_pairs": evaluated._replace(notes=notes, failures=failures)}


register(
    Protocol(
        "pairs",
        files="a pair list, rows of E or names (--labels)",
        rows="faces",
        identities="those of --identities",
        needs=("files", "labels"),
        flags=PairListOptions,
        grouped=True,
        failures=True,
        read=_read_listed,
        evaluate=_evaluate_listed,
    )
)
register(
    Protocol(
        "all_pairs",
        files="none: every pair of E",
        rows="faces, named PERSON/IMAGE",
        identities="people, PERSON of PERSON/IMAGE",
        people=people_by_folder,
        needs=(),
        flags=FarOptions,
        grouped=True,
        failures=True,
        read=_read_people,
        evaluate=_evaluate_all,
    )
)
