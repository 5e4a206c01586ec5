"""PFE and IDA together (section 4.7, Table 5): the mutual likelihood score, alone and inside DAO.

Two modes join PFE and IDA. In the first, `pfe_ida_r` and `pfe_ida_l`, the means of PFE's fused
templates go where mean pooled ones went: DAO of their cosine. In the second, `pfe_mls_ida_r` and
`pfe_mls_ida_l`, the mutual likelihood score takes the inner product's place,

    s(f₁, f₂) = σ̄² · MLS(f₁, f₂)        log DAO = τ s(f₁, f₂) + logaddexp(log F₁, log F₂)

with F of s to the k anchors where s is largest (IDA-R), or of the SSR module, which sees the mean
alone (IDA-L). σ̄² brings s to the cosine's scale, so that τ stays as it is
(`rescoring.likelihood.likelihood_scale`).

Both modes are readings: the paper does not say which one it used.

N faces or T templates, A anchors, P pairs, D embedding.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.artefacts.uncertainty_model import ProbabilisticEmbeddings
from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import SplitScores
from ida_jax.metrics.templates import fuse
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.likelihood import (
    all_pair_scores_mls,
    likelihood_scale,
    nearest_by_likelihood,
    score_pairs_mls,
)
from ida_jax.rescoring.method_table import METHODS
from ida_jax.rescoring.pairs import pair_scores, scores_of_cosines
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms, cosine_terms, dao_terms

# {method of mean pooled templates: the same on fused means}; on single images they agree.
FUSED_MEANS = {name: method.fused for name, method in METHODS.items() if method.fused}


class LikelihoodMethods(NamedTuple):
    """The methods that score by likelihood, for one set of faces.

    Attributes:
      scale: of the MLS, `likelihood_scale` of the anchors; 1 without anchors.
      terms: {method: its numbers of the faces}, whose rules take scale · MLS for the cosine.
    """

    scale: float
    terms: dict[str, FaceTerms]


def likelihood_methods(
    faces: ProbabilisticEmbeddings,
    anchors: ProbabilisticEmbeddings | None,
    *,
    k: int,
    tau: float,
    labels: np.ndarray | None = None,
    anchor_labels: np.ndarray | None = None,
    ssr: SSRModule | None = None,
) -> LikelihoodMethods:
    """`pfe`, and where there are anchors `pfe_mls_ida_r` and, with an SSR module, `pfe_mls_ida_l`.

    Args:
      faces: [N, D], images or fused templates.
      anchors: [A, D]; None for those without images (class weights), which have no variances.
      labels: int [N], identities in the anchors' numbering, each left out of its own support set.
      anchor_labels: int [A], with `labels`.
      ssr: the SSR module of the same k and τ.
    """
    terms = {"pfe": cosine_terms(len(faces.means))}
    if anchors is None:
        return LikelihoodMethods(1.0, terms)
    scale = likelihood_scale(anchors.log_variances)
    nearest = nearest_by_likelihood(
        *faces,
        *anchors,
        k=k,
        scale=scale,
        labels=labels,
        anchor_labels=None if labels is None else anchor_labels,
    )
    terms["pfe_mls_ida_r"] = dao_terms(log_density_of(nearest, tau=tau), tau=tau)
    if ssr is not None:
        terms["pfe_mls_ida_l"] = dao_terms(ssr.log_density(faces.means), tau=ssr.tau)
    return LikelihoodMethods(scale, terms)


def likelihood_of_pairs(
    faces: ProbabilisticEmbeddings, pairs: np.ndarray, methods: LikelihoodMethods
) -> dict[str, np.ndarray]:
    """{method: its scores of pairs of rows [P, 2], float32 [P]}; the MLS is computed once."""
    scores = score_pairs_mls(*faces, pairs, scale=methods.scale)
    return {name: scores_of_cosines(scores, pairs, terms) for name, terms in methods.terms.items()}


def likelihood_of_all_pairs(
    faces: ProbabilisticEmbeddings, labels: np.ndarray, methods: LikelihoodMethods
) -> dict[str, SplitScores]:
    """{method: its scores of all pairs, in the order of `rescoring.pairs.score_all_pairs`}."""
    return all_pair_scores_mls(*faces, labels, methods.terms, scale=methods.scale)


class ImageVariances(NamedTuple):
    """What PFE adds to embeddings of images.

    Attributes:
      log_variances: [N, D], log σ² of the images, in the lists' order; may be memory-mapped.
      anchors: [A, D], the anchors' log σ², or None; `pfe_mls_ida_r` and `pfe_mls_ida_l` need it.
    """

    log_variances: np.ndarray
    anchors: np.ndarray | None


def pfe_scores(
    embeddings: np.ndarray,
    variances: ImageVariances,
    templates: np.ndarray,
    pairs: np.ndarray,
    scorers: Mapping[str, Rescorer],
    *,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """{method: scores of the pairs, float32 [P]} of fused templates: by cosine, likelihood and DAO.

    A template's images are weighted by 1/σ² alone, not by media or the detector.

    Args:
      embeddings: floating point [N', D], of any norm.
      variances: of the same images, and of the anchors.
      templates: int [N], the images' templates.
      pairs: int [P, 2], rows of the T templates.
      scorers: {method: its Rescorer}; those of `FUSED_MEANS` are joined with PFE.
      rows: int [N], the images' rows in embeddings and variances.
    """
    if variances.log_variances.shape != embeddings.shape:
        raise UserError(
            f"log σ² is {list(variances.log_variances.shape)} and the embeddings "
            f"{list(embeddings.shape)}: expected one of each entry, from one `embed --pfe`"
        )
    faces = ProbabilisticEmbeddings(
        *fuse(embeddings, variances.log_variances, templates, rows=rows)
    )
    joined = {method: scorers[method] for method in FUSED_MEANS if method in scorers}
    terms = {FUSED_MEANS[method]: s.terms(faces.means) for method, s in joined.items()}
    scores = pair_scores(faces.means, pairs, terms)
    searching = next((s for m, s in joined.items() if "anchors" in METHODS[m].needs), None)
    regressing = next((s for m, s in joined.items() if "ssr" in METHODS[m].needs), None)
    anchors = None
    if searching is not None and variances.anchors is not None:
        embeddings = np.asarray(searching.anchors.embeddings)
        if variances.anchors.shape != embeddings.shape:
            raise UserError(
                f"the anchors' log σ² is {list(variances.anchors.shape)}, their embeddings "
                f"{list(embeddings.shape)}: expected one of each entry"
            )
        anchors = ProbabilisticEmbeddings(embeddings, np.asarray(variances.anchors))
    methods = likelihood_methods(
        faces,
        anchors,
        k=10 if searching is None else searching.k,
        tau=1.0 if searching is None else searching.tau,
        ssr=None if regressing is None else regressing.ssr,
    )
    return scores | likelihood_of_pairs(faces, pairs, methods)
