"""IJB-B and IJB-C: embeddings of images in, every method's figures of template pairs out, and of
searches where the release has its galleries.

N images, T templates, P pairs, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.evaluated import Evaluated
from ida_jax.metrics.templates import pool, pooling_matrix
from ida_jax.protocols.ijb_lists import SUBSETS, Galleries, IjbMeta, read_galleries, read_ijb
from ida_jax.protocols.ijb_pfe import ImageVariances, pfe_scores
from ida_jax.protocols.ijb_search import evaluate_searches
from ida_jax.protocols.request import Request
from ida_jax.protocols.scored_pairs import evaluate_scored_pairs
from ida_jax.protocols.table import FarOptions, Protocol, option, register
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.blocks import open_npy
from ida_jax.tables.embeddings import EmbeddingFile

if TYPE_CHECKING:
    from scipy.sparse import csc_array

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
FLIPS = ("none", "added", "halves")
DENSITIES = ("template", "images")
_RULE = "thresholds never exceed their FAR or FPIR (InsightFace takes the nearest)"
# Images searched at once where their densities are pooled.
_SLAB = 8192


def evaluate_ijb(
    embeddings: np.ndarray,
    meta: IjbMeta,
    scorers: Mapping[str, Rescorer],
    *,
    subset: str,
    galleries: Galleries | None = None,
    images: str = "keep",
    flip: str = "none",
    detector: bool = True,
    densities: str = "template",
    skip_bad: bool = False,
    variances: ImageVariances | None = None,
    fars: Sequence[float] = FARS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Evaluated]:
    """{variant: figures}: 1:1, and with galleries 1:N of each, and of both on average.

    The variant's name says what was done: "ijbc_1to1_flip_norm_detector" has mirror images added,
    embeddings' norms kept and the detector's scores as weights; "unit" stands where each image's
    embedding was normalised first. FARs are never exceeded (InsightFace takes the nearest one).
    Intervals are over subjects where the galleries tell them, else over templates.

    IDA on templates: with densities="template" support sets are those of the pooled embedding; with
    "images", F of a template is the mean of its images' F by the weights w_i / n_m of the pooling
    (of the methods that have densities; the others see the template alone).

    Args:
      embeddings: floating point [N, D], of any norm, in the lists' order; may be a map of a file.
      meta: the lists.
      scorers: {method: its Rescorer}.
      subset: "ijbb" or "ijbc", for the name.
      galleries: of 1:N.
      images: "keep" or "unit".
      flip: "none"; "added", the embeddings have their mirror images' added; "halves", they are
        [N, 2D], mirror images' beside them.
      detector: weights images by the detector's score, where the lists have it.
      densities: "template" or "images".
      skip_bad: leaves images out whose embeddings are zero, NaN or infinite, and counts them.
      variances: adds PFE's methods to 1:1, on templates fused by them; None without PFE.
      fars: the FARs of the figures.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: an unknown choice, embeddings of another number, zero, NaN or infinite ones.
    """
    for name, given, known in (("flip", flip, FLIPS), ("densities", densities, DENSITIES)):
        if given not in known:
            raise UserError(f"{name} is '{given}': choose one of {', '.join(known)}")
    if variances is not None and flip == "halves":
        raise UserError("PFE takes embeddings with their mirror images' added, not as halves")
    if len(embeddings) != meta.templates.size:
        raise UserError(
            f"{len(embeddings)} embeddings for the lists' {meta.templates.size} images: expected "
            "one an image, in the lists' order"
        )
    weights = meta.detector if detector else None
    rows = _good_rows(embeddings) if skip_bad else np.arange(meta.templates.size)
    _require_images(meta, rows)
    matrix = pooling_matrix(
        meta.templates[rows], meta.media[rows], weights=None if weights is None else weights[rows]
    )
    kind = f"{images}_halves" if flip == "halves" else images
    pooled = pool(matrix, embeddings, images=kind, rows=rows)
    faces = unit_embeddings(pooled, what="templates")
    terms = {name: scorer.terms(faces) for name, scorer in scorers.items()}
    pooled_densities = densities == "images" and any(t.rule == "dao" for t in terms.values())
    if pooled_densities:
        terms |= _pooled_terms(
            matrix, embeddings, scorers, terms, rows=rows, halves=flip == "halves"
        )

    variant = "_flip" * (flip != "none") + ("_norm" if images == "keep" else "_unit")
    variant += "_detector" * (weights is not None) + "_image_densities" * pooled_densities
    subjects = None if galleries is None else _subjects(galleries, meta)
    units = np.arange(meta.template_ids.size) if subjects is None else subjects
    scores = pair_scores(faces, meta.pairs, terms)
    if variances is not None:
        scores |= pfe_scores(
            embeddings, variances, meta.templates[rows], meta.pairs, scorers, rows=rows
        )
    evaluated = {
        f"{subset}_1to1{variant}": evaluate_scored_pairs(
            scores,
            meta.same,
            units[meta.pairs],
            over="templates" if subjects is None else "identities",
            fars=fars,
            resamples=resamples,
            seed=seed,
        )
    }
    if galleries is not None:
        searched = evaluate_searches(faces, terms, galleries, resamples=resamples, seed=seed)
        evaluated |= {f"{subset}_{name}{variant}": each for name, each in searched.items()}
    notes = (*meta.notes, _RULE)
    if left_out := meta.templates.size - rows.size:
        notes += (f"{left_out:,} images without an embedding were left out of their templates",)
    return {name: each._replace(notes=(*notes, *each.notes)) for name, each in evaluated.items()}


def _good_rows(embeddings: np.ndarray) -> np.ndarray:
    """The rows that are neither zero, NaN nor infinite."""
    good = []
    for start in range(0, len(embeddings), _SLAB):
        slab = np.asarray(embeddings[start : start + _SLAB], np.float64)
        norm = np.einsum("nd,nd->n", slab, slab)
        good.append(start + np.flatnonzero(np.isfinite(norm) & (norm > 0)))
    return np.concatenate(good)


def _require_images(meta: IjbMeta, rows: np.ndarray) -> None:
    empty = np.flatnonzero(np.bincount(meta.templates[rows], minlength=meta.template_ids.size) == 0)
    if empty.size:
        raise UserError(
            f"template {meta.template_ids[empty[0]]} has no image with an embedding: embed its "
            "images again"
        )


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
    dao = [name for name, each in terms.items() if each.rule == "dao"]
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
    for name, each in zip(dao, log_density, strict=True):
        highest = each.max()  # taken out, so that no exponential is 0
        values = highest + np.log((matrix @ np.exp(each - highest)) / total)
        pooled[name] = terms[name]._replace(values=values.astype(np.float32)[:, None])
    return pooled


def _subjects(galleries: Galleries, meta: IjbMeta) -> np.ndarray | None:
    """int64 [T], each template's subject from 0; None where a listed pair's template has none."""
    subjects = np.full(meta.template_ids.size, -1, np.int64)
    for enrolled in (*galleries.galleries.values(), galleries.probes):
        subjects[enrolled.rows] = enrolled.subjects
    if (subjects[meta.pairs] < 0).any():
        return None
    return np.unique(subjects, return_inverse=True)[1]


@dataclass(frozen=True)
class IjbOptions(FarOptions):
    """What is made of the images, and PFE's files."""

    flip: str = option(
        "none",
        "mirror images' embeddings are added in E already, or stand beside the others, [N, 2D] "
        "(none)",
        choices=FLIPS,
    )
    norm: str = option(
        "keep",
        "an image's weight in its template is its embedding's norm (keep), or all weigh alike "
        "(unit)",
        choices=("keep", "unit"),
    )
    detector: str = option(
        "weight",
        "images are weighted by the detector's score where the release has it (weight)",
        choices=("weight", "ignore"),
    )
    densities: str = option(
        "template",
        "F of the pooled embedding (template), or pooled F of its images",
        choices=DENSITIES,
    )
    log_variances: Path | None = option(None, "E's, for PFE (embed --pfe)", metavar="V")
    anchor_log_variances: Path | None = option(None, "the anchors' (W's own)", metavar="V")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor_log_variances is not None and self.log_variances is None:
            raise UserError("--anchor_log_variances needs --log_variances=V, the embeddings' own")


class _Release(NamedTuple):
    """The lists, the images' embeddings in their order, and PFE's variances if given."""

    meta: IjbMeta
    galleries: Galleries | None
    embeddings: np.ndarray
    variances: ImageVariances | None


def _read(request: Request, options: IjbOptions) -> _Release:
    subset = request.protocol
    meta = read_ijb(request.files, subset=subset)
    galleries = read_galleries(request.files, subset=subset, template_ids=meta.template_ids)
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
            "of each entry, from one python -m ida_jax.embed --pfe"
        )
    if beside is None and request.anchors is not None:
        own = request.anchors / "log_variances.npy"
        beside = own if own.is_file() else None
    anchors = None if beside is None else open_npy(beside, what="log-variances of anchors")
    listed = request.embeddings._replace(embeddings=log_variances)
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


def _evaluate(
    request: Request, options: IjbOptions, data: _Release, scorers: Mapping[str, Rescorer]
) -> dict[str, Evaluated]:
    return evaluate_ijb(
        data.embeddings,
        data.meta,
        scorers,
        subset=request.protocol,
        galleries=data.galleries,
        images=options.norm,
        flip=options.flip,
        detector=options.detector == "weight",
        densities=options.densities,
        skip_bad=request.skip_bad,
        variances=data.variances,
        fars=options.fars or FARS,
        **request.bootstrap,
    )


for _subset in SUBSETS:
    register(
        Protocol(
            _subset,
            files="the release's folder, with meta/",
            rows="images of meta/*_face_tid_mid.txt",
            needs=("files",),
            flags=IjbOptions,
            read=_read,
            evaluate=_evaluate,
        )
    )
