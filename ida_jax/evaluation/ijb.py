"""IJB-B and IJB-C, 1:1: embeddings of images in, every method's figures of template pairs out.

N images, T templates, P pairs, D embedding.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ida_jax.data.ijb import Galleries, IjbMeta
from ida_jax.errors import UserError
from ida_jax.evaluation.evaluated import Evaluated
from ida_jax.evaluation.ijb_search import evaluate_searches
from ida_jax.evaluation.scored_pairs import evaluate_scored_pairs
from ida_jax.protocols.templates import pool, pooling_matrix
from ida_jax.rescoring.pairs import score_pairs, scores_of_cosines
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.validation import unit_embeddings

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
      fars: the FARs of the figures.
      resamples: of the bootstrap; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: an unknown choice, embeddings of another number, zero, NaN or infinite ones.
    """
    for name, given, known in (("flip", flip, FLIPS), ("densities", densities, DENSITIES)):
        if given not in known:
            raise UserError(f"{name} is '{given}': choose one of {', '.join(known)}")
    weights = meta.detector if detector else None
    matrix = pooling_matrix(meta.templates, meta.media, weights=weights)
    kind = f"{images}_halves" if flip == "halves" else images
    faces = unit_embeddings(pool(matrix, embeddings, images=kind), what="templates")
    terms = {name: scorer.terms(faces) for name, scorer in scorers.items()}
    pooled_densities = densities == "images" and any(t.rule == "dao" for t in terms.values())
    if pooled_densities:
        terms |= _pooled_terms(matrix, embeddings, scorers, terms, halves=flip == "halves")

    variant = "_flip" * (flip != "none") + ("_norm" if images == "keep" else "_unit")
    variant += "_detector" * (weights is not None) + "_image_densities" * pooled_densities
    subjects = None if galleries is None else _subjects(galleries, meta)
    units = np.arange(meta.template_ids.size) if subjects is None else subjects
    evaluated = {
        f"{subset}_1to1{variant}": evaluate_scored_pairs(
            _scores(faces, meta.pairs, terms),
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
    return {name: each._replace(notes=(*notes, *each.notes)) for name, each in evaluated.items()}


def _scores(
    faces: np.ndarray, pairs: np.ndarray, terms: Mapping[str, FaceTerms]
) -> dict[str, np.ndarray]:
    cosines = score_pairs(faces, pairs)
    return {name: scores_of_cosines(cosines, pairs, each) for name, each in terms.items()}


def _pooled_terms(
    matrix: "csc_array",
    embeddings: np.ndarray,
    scorers: Mapping[str, Rescorer],
    terms: Mapping[str, FaceTerms],
    *,
    halves: bool,
) -> dict[str, FaceTerms]:
    """The terms of the methods with densities: log of the weighted mean of the images' F."""
    dao = [name for name, each in terms.items() if each.rule == "dao"]
    log_density = np.empty((len(dao), embeddings.shape[0]))
    width = embeddings.shape[1] // 2
    for start in range(0, embeddings.shape[0], _SLAB):
        slab = np.asarray(embeddings[start : start + _SLAB], np.float32)
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
