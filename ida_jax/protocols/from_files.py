"""From a protocol's files and embeddings to figures, for `ida_jax.runs.protocol_command`.

N faces, P pairs, D embedding.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_same_model, unit_rows
from ida_jax.data.labelled_pairs import consecutive_pairs, read_calfw_pairs, read_lfw_pairs
from ida_jax.data.sources.image_files import without_suffix
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.protocols.ijb_pfe import ImageVariances
from ida_jax.protocols.scored_pairs import OVER_PAIRS, evaluate_labelled_pairs
from ida_jax.protocols.verification import evaluate_all_pairs, evaluate_kfold
from ida_jax.rescoring.methods import labels_among_anchors, require_same_models
from ida_jax.rescoring.pairs import score_pairs
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.blocks import open_npy
from ida_jax.tables.embeddings import EmbeddingFile

_FARS = (1e-3, 1e-4, 1e-5)
_FOLDS = 10


def labelled_pairs(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """Any labelled pair list."""
    from ida_jax.tables.labelled_scores import read_identities, read_labels
    from ida_jax.tables.pair_lists import PairFile, convert_pairs

    faces, bad, notes = _faces(options, found)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npy"
        convert = partial(convert_pairs, options.files, path, rows=len(faces))
        if options.names is not None or found.names is None:
            convert(names=found.names)
        else:
            try:  # names came along with E: the list may be of rows all the same
                convert(names=None)
            except UserError:
                convert(names=found.names)
        listed = PairFile(path)
        pairs = np.array(listed.read(0, listed.count))
    same = read_labels(options.labels)
    units = None if options.identities is None else read_identities(options.identities)
    for file, rows in ((options.labels, same), (options.identities, units)):
        if rows is not None and len(rows) != len(pairs):
            raise UserError(
                f"{file} has {len(rows)} rows and {options.files} has {len(pairs)} pairs: expected "
                "one a pair"
            )
    scores = {
        name: score_pairs(faces, pairs, scorer.terms(faces)) for name, scorer in scorers.items()
    }
    for each in scores.values():
        each[bad[pairs].any(axis=1)] = np.nan
    evaluated = evaluate_labelled_pairs(
        scores, same, units, fars=options.fars or _FARS, **_bootstrap(options)
    )
    return {"pairs": evaluated._replace(notes=(*notes, *evaluated.notes))}


def kfold(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """LFW, CALFW and CPLFW: 10-fold accuracy of the set's own list."""
    names = [without_suffix(name) for name in _required_names(found, options)]
    if options.protocol == "lfw":
        names = [name if "/" in name else f"{_person(name)}/{name}" for name in names]
        pair_list = read_lfw_pairs(_inside(options.files, "pairs.txt"), names)
    else:
        file = f"pairs_{options.protocol.upper()}.txt"
        pair_list = read_calfw_pairs(_inside(options.files, file), names)
    # The same person is one unit of the bootstrap, in whatever folder the image is.
    people = [_person(name.rsplit("/", 1)[-1]) for name in names]
    _, labels = np.unique(people, return_inverse=True)
    faces, bad, notes = _faces(options, found)
    methods = _terms(faces, people, scorers)
    folds = int(pair_list.fold.max()) + 1
    evaluated = evaluate_kfold(
        faces, pair_list, methods, labels=labels, bad=bad, **_bootstrap(options)
    )
    return {f"{options.protocol}_{folds}fold": evaluated._replace(notes=notes)}


def verification_bin(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """A verification set (`.bin`), whose embeddings are those of its images in their order."""
    from ida_jax.data.sources.verification_bin import read_verification_bin

    same = read_verification_bin(options.files).same
    if len(found.embeddings) != 2 * same.size:
        raise UserError(
            f"{options.embeddings} has {len(found.embeddings)} embeddings and {options.files} "
            f"{2 * same.size} images: expected those of python -m ida_jax.embed "
            f"--images={options.files}"
        )
    if same.size < _FOLDS:
        raise UserError(
            f"{options.files} has {same.size} pairs: {_FOLDS} folds need at least {_FOLDS}"
        )
    faces, bad, notes = _faces(options, found)
    methods = {name: scorer.terms(faces) for name, scorer in scorers.items()}
    # Nobody says whose the images are: each pair is a unit of its own.
    pairs = np.repeat(np.arange(same.size), 2)
    evaluated = evaluate_kfold(
        faces,
        consecutive_pairs(same, folds=_FOLDS),
        methods,
        labels=pairs,
        bad=bad,
        **_bootstrap(options),
    )
    name = f"{options.files.stem}_{_FOLDS}fold"
    return {name: evaluated._replace(notes=(*notes, OVER_PAIRS))}


def all_pairs(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """Every pair of the faces; a face's person is the folder of its name."""
    names = _required_names(found, options)
    for row, name in enumerate(names):
        if "/" not in name:
            raise UserError(
                f"row {row} of {options.embeddings} is named {name}: expected PERSON/IMAGE, which "
                "says whose face it is"
            )
    faces, bad, _ = _faces(options, found)
    people = np.array([name.split("/")[0] for name in names])[~bad]
    identities, labels = np.unique(people, return_inverse=True)
    if not 1 < identities.size < people.size:
        raise UserError(
            f"{options.embeddings} has {people.size} faces of {identities.size} people by their "
            f"names, PERSON/IMAGE, such as {names[0]}: expected several people, and several images "
            "of one"
        )
    faces = faces[~bad]
    methods = _terms(faces, people.tolist(), scorers)
    found_all = evaluate_all_pairs(
        faces, labels, methods, fars=options.fars or _FARS, **_bootstrap(options)
    )
    notes = (f"{int(bad.sum()):,} faces without an embedding were left out",) if bad.any() else ()
    evaluated = found_all.evaluated
    return {"all_pairs": evaluated._replace(notes=(*notes, *evaluated.notes))}


def videos(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """YTF in both modes."""
    from ida_jax.protocols.ytf import evaluate_ytf
    from ida_jax.protocols.ytf_lists import group_frames, read_ytf_splits

    listed = read_ytf_splits(_inside(options.files, "splits.txt"))
    frames = group_frames(_required_names(found, options), listed.videos)
    return evaluate_ytf(
        found.embeddings,
        frames,
        listed,
        scorers,
        skip_bad=options.skip_bad,
        **_bootstrap(options),
    )


def distractors(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """MegaFace's identification, FaceScrub's faces among distractors."""
    from ida_jax.protocols.megaface import evaluate_megaface
    from ida_jax.protocols.megaface_lists import find_lists, load_megaface
    from ida_jax.tables.embeddings import read_embeddings

    crowd = options.distractors
    if not crowd.exists():
        raise UserError(
            f"no distractors at {crowd}: expected embeddings with names, or a folder of feature "
            "files"
        )
    if not crowd.is_dir():
        crowd = read_embeddings(crowd, names=names_beside(crowd, options.distractor_names))
        require_same_model(
            "probes", found.fingerprint, found.width,
            fingerprint=crowd.fingerprint, width=crowd.width, whose=str(options.distractors),
        )  # fmt: skip
        require_same_models(options.distractors, crowd.fingerprint, scorers.values())
    data = load_megaface(find_lists(options.files), facescrub=found, megaface=crowd)
    evaluated = evaluate_megaface(
        data.probes,
        data.labels,
        data.distractors,
        scorers,
        sets=data.sets,
        skip_bad=options.skip_bad,
        **_bootstrap(options),
    )
    return {"megaface": evaluated._replace(notes=(*data.notes, *evaluated.notes))}


def templates(
    options: Any, found: EmbeddingFile, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    """IJB-B or IJB-C, 1:1, and 1:N where the release has its lists."""
    from ida_jax.protocols.ijb import FARS, evaluate_ijb
    from ida_jax.protocols.ijb_lists import read_galleries, read_ijb

    subset = options.protocol
    if options.anchor_log_variances is not None and options.log_variances is None:
        raise UserError("--anchor_log_variances needs --log_variances=V, the embeddings' own")
    meta = read_ijb(options.files, subset=subset)
    galleries = read_galleries(options.files, subset=subset, template_ids=meta.template_ids)
    variances = None
    if options.log_variances is not None:
        variances = _image_variances(options, found, meta.names)
    return evaluate_ijb(
        in_order(found, meta.names, options.embeddings),
        meta,
        scorers,
        subset=subset,
        galleries=galleries,
        images=options.norm,
        flip=options.flip,
        detector=options.detector == "weight",
        densities=options.densities,
        skip_bad=options.skip_bad,
        variances=variances,
        fars=options.fars or FARS,
        **_bootstrap(options),
    )


def _image_variances(options: Any, found: EmbeddingFile, names: Sequence[str]) -> ImageVariances:
    path, beside = options.log_variances, options.anchor_log_variances
    log_variances = open_npy(path, what="log-variances")
    if path.samefile(options.embeddings):
        raise UserError(f"--log_variances={path} is E itself: embed --pfe writes them beside it")
    if log_variances.shape != found.embeddings.shape:
        raise UserError(
            f"{path} is {list(log_variances.shape)} and {options.embeddings} "
            f"{list(found.embeddings.shape)}: expected one of each entry, from one "
            "python -m ida_jax.embed --pfe"
        )
    if beside is None and options.run is not None and options.anchors is None:
        own = options.run / "anchors" / "log_variances.npy"
        beside = own if own.is_file() else None
    anchors = None if beside is None else open_npy(beside, what="log-variances of anchors")
    listed = found._replace(embeddings=log_variances)
    return ImageVariances(in_order(listed, names, path), anchors)


def in_order(found: EmbeddingFile, names: Sequence[str], path: Path) -> np.ndarray:
    """The embeddings in the order of a list's images; names are compared without their folders.

    Raises:
      UserError: embeddings without names of another number, or an image that has none.
    """
    if found.names is None:
        if len(found.embeddings) != len(names):
            raise UserError(
                f"{path} has {len(found.embeddings)} embeddings and the list {len(names)} images: "
                "expected one an image in the list's order, or names"
            )
        return found.embeddings
    files = [name.rsplit("/", 1)[-1] for name in found.names]
    wanted = [name.rsplit("/", 1)[-1] for name in names]
    if files == wanted:
        return found.embeddings
    row_of = {name: row for row, name in enumerate(files)}
    if len(row_of) < len(files):
        twice = next(name for row, name in enumerate(files) if row_of[name] != row)
        raise UserError(
            f"{path} has several images named {twice} in different folders: give the embeddings of "
            "the protocol's own images alone"
        )
    for name in wanted:
        if name not in row_of:
            raise UserError(f"{path} has no embedding of {name}, which the list names")
    return found.embeddings[[row_of[name] for name in wanted]]


def names_beside(embeddings: Path, names: Path | None) -> Path | None:
    """The names' file that was given, or the one that `ida_jax.embed` writes beside an .npy."""
    beside = embeddings.with_suffix(".names.txt")
    return beside if names is None and beside.is_file() else names


def _terms(
    faces: np.ndarray, people: Sequence[str], scorers: Mapping[str, Rescorer]
) -> dict[str, FaceTerms]:
    """Every method's terms; people among named anchors are left out of their own support sets."""
    own = labels_among_anchors(people, scorers)
    return {name: scorer.terms(faces, labels=own) for name, scorer in scorers.items()}


class _Faces(NamedTuple):
    """Unit rows, a stand-in for each bad one, which ones are bad, and a note of how many."""

    embeddings: np.ndarray
    bad: np.ndarray
    notes: tuple[str, ...]


def _faces(options: Any, found: EmbeddingFile) -> _Faces:
    what = f"embeddings in {options.embeddings}"
    faces, bad = unit_rows(found.embeddings, skip_bad=options.skip_bad, what=what)
    if not bad.any():
        return _Faces(faces, bad, ())
    faces[bad] = np.eye(1, faces.shape[1], dtype=np.float32)
    return _Faces(faces, bad, (f"{int(bad.sum()):,} faces without an embedding never match",))


def _bootstrap(options: Any) -> dict[str, Any]:
    return {"resamples": options.resamples, "seed": options.seed}


def _required_names(found: EmbeddingFile, options: Any) -> Sequence[str]:
    if found.names is None:
        raise UserError(
            f"{options.embeddings} has no names, which --protocol={options.protocol} looks images "
            "up by: give --names=FILE, one a line in the embeddings' order"
        )
    return found.names


def _inside(path: Path, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    return path / name if path.is_dir() else path


def _person(image: str) -> str:
    """George_W_Bush of George_W_Bush_0001."""
    return re.sub(r"_\d+$", "", image)
