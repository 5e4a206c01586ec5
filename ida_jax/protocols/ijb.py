"""IJB-B and IJB-C: every method's figures of template pairs, and of searches in the galleries.

N images, T templates, P pairs, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings, unit_rows
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.templates import pool_templates, pooling_matrix
from ida_jax.protocols.ijb_files import SUBSETS, Galleries, IjbMeta, read_galleries, read_ijb
from ida_jax.protocols.ijb_search import evaluate_joined, evaluate_searches
from ida_jax.protocols.pfe_methods import ImageVariances, pfe_scores
from ida_jax.protocols.table import (
    FarOptions,
    LeftOut,
    Protocol,
    Request,
    left_out,
    option,
    register,
)
from ida_jax.protocols.verification import evaluate_scored_pairs
from ida_jax.rescoring.method_table import METHODS
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.blocks import open_npy
from ida_jax.tables.embeddings import EmbeddingFile
from ida_jax.tables.identity_pairs import IdentityPairs

if TYPE_CHECKING:
    from scipy.sparse import csc_array

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
FLIPS = ("none", "added", "halves")
DENSITIES = ("template", "images")
GALLERIES = ("apart", "joined")
_RULE = "thresholds never exceed their FAR or FPIR (InsightFace takes the nearest)"
_UNIT = (
    "the images' embeddings all have unit length, so that their norms weigh nothing, though the "
    "variant's name has norm: give raw ones (ida-jax embed; export --output_kind=raw)"
)
# Images searched at once where their densities are pooled.
_SLAB = 8192


def evaluate_ijb(
    embeddings: np.ndarray,
    meta: IjbMeta,
    scorers: Mapping[str, Rescorer],
    *,
    subset: str,
    galleries: Galleries | None = None,
    norm: str = "keep",
    flip: str = "none",
    detector: bool = True,
    densities: str = "template",
    join_galleries: bool = False,
    skip_bad: bool = False,
    variances: ImageVariances | None = None,
    one_person: IdentityPairs | None = None,
    fars: Sequence[float] = FARS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """{variant: figures}: 1:1, and with galleries 1:N in either, and the mean of both.

    A variant's name has its options: "ijbc_1to1_flip_norm_detector" adds mirror images, keeps
    embeddings' norms and takes the detector's scores as weights; "unit" in place of "norm" means
    that images' embeddings were normalised first. FARs are never exceeded (InsightFace takes the
    nearest one). Intervals are over subjects if the galleries give them, otherwise over templates.

    IDA on templates: with densities="template" support sets are those of the pooled embedding; with
    "images", F of a template is the mean of its images' F by the weights w_i / n_m of the pooling
    (methods without densities see the template alone). IDA-Q takes the norm of the pooled raw
    embeddings, Σ w_i e_i / n_m over Σ w_i / n_m, whatever `norm` says.

    Args:
      embeddings: floating point [N, D], of any norm, in the lists' order; may be memory-mapped.
      scorers: {method: its Rescorer}.
      subset: "ijbb" or "ijbc", for the name.
      galleries: of 1:N.
      norm: "keep" or "unit"; "keep" takes raw embeddings, and where all have unit length a note
        says that their norms weigh nothing.
      flip: mirror images' embeddings: "none", "added", or "halves": beside the others, [N, 2D].
      detector: weights images by the detector's score if the lists have it.
      densities: "template" or "images".
      join_galleries: adds InsightFace's 1:N, of both galleries as one ("1toN_joined").
      skip_bad: leaves out and counts images whose embeddings are zero, NaN or infinite.
      variances: of PFE, whose methods they add to 1:1; or None.
      one_person: subjects whose pairs count neither way, by their ids; in 1:N the one's entry is
        hidden from the other's probes.
      resamples, seed: of the bootstrap; 0 resamples omit the intervals.
    """
    for name, given, known in (("flip", flip, FLIPS), ("densities", densities, DENSITIES)):
        if given not in known:
            raise UserError(f"unknown {name} '{given}': choose one of {', '.join(known)}")
    if variances is not None and flip == "halves":
        raise UserError("PFE takes embeddings with their mirror images' added, not as halves")
    if len(embeddings) != meta.templates.size:
        raise UserError(
            f"{len(embeddings)} embeddings for the lists' {meta.templates.size} images: expected "
            "one for each image, in the lists' order"
        )
    subjects = None if galleries is None else _subjects(galleries, meta)
    if one_person is not None and subjects is None:
        raise UserError(
            "--ignore_identity_pairs names subjects, which the 1:N lists (ijb*_1N_*.csv) give, for "
            "each template of the pairs: put them into the release's meta folder"
        )
    out = LeftOut(None, np.ones(meta.same.size, bool))
    if one_person is not None:
        out = left_out(one_person, subjects, meta.pairs)
        meta = meta._replace(pairs=meta.pairs[out.kept], same=meta.same[out.kept])
    weights = meta.detector if detector else None
    rows = _good_rows(embeddings) if skip_bad else np.arange(meta.templates.size)
    images_of = np.bincount(meta.templates[rows], minlength=meta.template_ids.size)
    if not images_of.all():
        raise UserError(
            f"template {meta.template_ids[np.argmin(images_of)]} has no image with an embedding: "
            "embed its images again"
        )
    matrix = pooling_matrix(
        meta.templates[rows], meta.media[rows], weights=None if weights is None else weights[rows]
    )
    pooled = pool_templates(matrix, embeddings, norm=norm, halves=flip == "halves", rows=rows)
    faces, _, norms = unit_rows(pooled, what="templates")
    if norm != "keep" and any(METHODS[scorer.method].log_norm for scorer in scorers.values()):
        raw = pool_templates(matrix, embeddings, halves=flip == "halves", rows=rows)
        norms = np.linalg.norm(raw, axis=1)
    norms /= matrix.sum(axis=1)
    terms = {name: scorer.terms(faces, norms=norms) for name, scorer in scorers.items()}
    pooled_densities = densities == "images" and any(t.rule == "dao" for t in terms.values())
    if pooled_densities:
        terms |= _pooled_terms(
            matrix, embeddings, scorers, terms, rows=rows, halves=flip == "halves"
        )

    variant = "_flip" * (flip != "none") + ("_norm" if norm == "keep" else "_unit")
    variant += "_detector" * (weights is not None) + "_image_densities" * pooled_densities
    units = np.arange(meta.template_ids.size)
    if subjects is not None:
        units = np.unique(subjects, return_inverse=True)[1]
    scores = pair_scores(faces, meta.pairs, terms)
    if variances is not None:
        scores |= pfe_scores(
            embeddings, variances, meta.templates[rows], meta.pairs, scorers, rows=rows
        )
    evaluated = {
        f"{subset}_1to1{variant}": out.noted(
            evaluate_scored_pairs(
                scores,
                meta.same,
                units[meta.pairs],
                over="templates" if subjects is None else "identities",
                fars=fars,
                resamples=resamples,
                seed=seed,
            )
        )
    }
    if galleries is not None:
        searched = evaluate_searches(
            faces, terms, galleries, one_person=one_person, resamples=resamples, seed=seed
        )
        if join_galleries:
            searched |= evaluate_joined(faces, terms, galleries, one_person=one_person)
        evaluated |= {f"{subset}_{name}{variant}": of for name, of in searched.items()}
    notes = (*meta.notes, _RULE)
    if norm == "keep" and _all_unit(embeddings, halves=flip == "halves"):
        notes += (_UNIT,)
    if lost := meta.templates.size - rows.size:
        notes += (f"{lost:,} images without an embedding were left out of their templates",)
    return {name: of._replace(notes=(*notes, *of.notes)) for name, of in evaluated.items()}


def _all_unit(embeddings: np.ndarray, *, halves: bool) -> bool:
    """Whether the first images' embeddings were normalised; bad rows say nothing."""
    slab = np.asarray(embeddings[:_SLAB], np.float64)
    if halves:
        slab = np.concatenate(np.split(slab, 2, axis=1))
    norms = np.linalg.norm(slab, axis=1)
    known = norms[np.isfinite(norms) & (norms > 0)]
    return bool(known.size and np.all(np.abs(known - 1) < 1e-3))


def _good_rows(embeddings: np.ndarray) -> np.ndarray:
    """The rows that are neither zero, NaN nor infinite."""
    good = []
    for start in range(0, len(embeddings), _SLAB):
        slab = np.asarray(embeddings[start : start + _SLAB], np.float64)
        norm = np.einsum("nd,nd->n", slab, slab)
        good.append(start + np.flatnonzero(np.isfinite(norm) & (norm > 0)))
    return np.concatenate(good)


def _pooled_terms(
    matrix: "csc_array",
    embeddings: np.ndarray,
    scorers: Mapping[str, Rescorer],
    terms: Mapping[str, FaceTerms],
    *,
    rows: np.ndarray,
    halves: bool,
) -> dict[str, FaceTerms]:
    """The terms of the methods with densities: log of the weighted mean of the images' F."""
    dao = [name for name, own in terms.items() if own.rule == "dao"]
    log_density = np.empty((len(dao), rows.size))
    width = embeddings.shape[1] // 2
    for start in range(0, rows.size, _SLAB):
        slab = np.asarray(embeddings[rows[start : start + _SLAB]], np.float32)
        if halves:
            slab = slab[:, :width] + slab[:, width:]
        slab = unit_embeddings(slab)
        for row, name in enumerate(dao):
            log_density[row, start : start + _SLAB] = scorers[name].terms(slab).values[:, 0]
    total = matrix.sum(axis=1)
    pooled = {}
    for name, of_images in zip(dao, log_density, strict=True):
        highest = of_images.max()  # factored out, so that not all exponentials are 0
        values = highest + np.log((matrix @ np.exp(of_images - highest)) / total)
        pooled[name] = terms[name]._replace(values=values.astype(np.float32)[:, None])
    return pooled


def _subjects(galleries: Galleries, meta: IjbMeta) -> np.ndarray | None:
    """int64 [T], templates' subjects, −1 for none; None if a listed pair's template has none."""
    subjects = np.full(meta.template_ids.size, -1, np.int64)
    for enrolled in (*galleries.galleries.values(), galleries.probes):
        subjects[enrolled.rows] = enrolled.subjects
    if (subjects[meta.pairs] < 0).any():
        return None
    return subjects


@dataclass(frozen=True)
class IjbOptions(FarOptions):
    """How images become templates, and PFE's files."""

    flip: str = option(
        "none",
        "mirror images' embeddings: none (default), added in E already, or halves, [N, 2D]",
        choices=FLIPS,
    )
    norm: str = option(
        "keep",
        "an image's weight in its template: its raw embedding's norm (keep, the default), or 1 "
        "(unit)",
        choices=("keep", "unit"),
    )
    detector: str = option(
        "weight",
        "whether the detector's scores, if the release has them, weight images (weight)",
        choices=("weight", "ignore"),
    )
    densities: str = option(
        "template",
        "F of the pooled embedding (template, the default), or the pooled F of its images",
        choices=DENSITIES,
    )
    galleries: str = option(
        "apart",
        "1:N: each gallery by itself and their mean (apart, the default); or joined: also both as "
        "one, as InsightFace searches them",
        choices=GALLERIES,
    )
    log_variances: Path | None = option(None, "E's, for PFE (embed --pfe)", metavar="V")
    anchor_log_variances: Path | None = option(None, "the anchors' (W's own)", metavar="V")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor_log_variances is not None and self.log_variances is None:
            raise UserError("--anchor_log_variances needs --log_variances=V, the embeddings' own")


class _Release(NamedTuple):
    """The lists, the images' embeddings in their order, and PFE's variances, if any."""

    meta: IjbMeta
    galleries: Galleries | None
    embeddings: np.ndarray
    variances: ImageVariances | None


def _read(request: Request, options: IjbOptions) -> _Release:
    subset = request.protocol
    meta = read_ijb(request.files, subset=subset)
    galleries = read_galleries(request.files, subset=subset, template_ids=meta.template_ids)
    if galleries is None and options.galleries == "joined":
        raise UserError(
            "--galleries=joined needs the 1:N lists (ijb*_1N_*.csv): put them into the release's "
            "meta folder"
        )
    variances = None
    if options.log_variances is not None:
        variances = _image_variances(request, options, meta.names)
    embeddings = in_order(request.embeddings, meta.names, request.path)
    return _Release(meta, galleries, embeddings, variances)


def _image_variances(request: Request, options: IjbOptions, names: Sequence[str]) -> ImageVariances:
    path, beside = options.log_variances, options.anchor_log_variances
    log_variances = open_npy(path, what="log-variances")
    if path.samefile(request.path):
        raise UserError(f"--log_variances={path} is E itself: embed --pfe writes them beside it")
    shape = request.embeddings.embeddings.shape
    if log_variances.shape != shape:
        raise UserError(
            f"{path} is {list(log_variances.shape)} and {request.path} {list(shape)}: expected one "
            "of each entry, from one ida-jax embed --pfe"
        )
    if beside is None and request.anchors is not None:
        own = request.anchors / "log_variances.npy"
        beside = own if own.is_file() else None
    anchors = None if beside is None else open_npy(beside, what="log-variances of anchors")
    listed = request.embeddings._replace(embeddings=log_variances)
    return ImageVariances(in_order(listed, names, path), anchors)


def in_order(given: EmbeddingFile, names: Sequence[str], path: Path) -> np.ndarray:
    """The embeddings in the order of a list's images; names are compared without their folders."""
    if given.names is None:
        if len(given.embeddings) != len(names):
            raise UserError(
                f"{path} has {len(given.embeddings)} embeddings and the list {len(names)} images: "
                "expected one for each image in the list's order, or names"
            )
        return given.embeddings
    files = [name.rsplit("/", 1)[-1] for name in given.names]
    wanted = [name.rsplit("/", 1)[-1] for name in names]
    if files == wanted:
        return given.embeddings
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
    return given.embeddings[[row_of[name] for name in wanted]]


def _evaluate(
    request: Request, options: IjbOptions, data: _Release, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluation]:
    return evaluate_ijb(
        data.embeddings,
        data.meta,
        scorers,
        subset=request.protocol,
        galleries=data.galleries,
        norm=options.norm,
        flip=options.flip,
        detector=options.detector == "weight",
        densities=options.densities,
        join_galleries=options.galleries == "joined",
        skip_bad=request.skip_bad,
        variances=data.variances,
        one_person=request.one_person,
        fars=options.fars or FARS,
        **request.bootstrap,
    )


for _subset in SUBSETS:
    register(
        Protocol(
            _subset,
            files="the release's folder, with meta/",
            rows="images of meta/*_face_tid_mid.txt",
            identities="subjects, SUBJECT_ID of the 1:N lists",
            flags=IjbOptions,
            read=_read,
            evaluate=_evaluate,
        )
    )
