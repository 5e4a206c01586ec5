"""IJB-B and IJB-C with PFE, 1:1: fused templates by cosine, by likelihood, in DAO (Table 5).

N images, T templates, P pairs, D embedding.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ida_jax.artefacts.uncertainty import ProbabilisticEmbeddings
from ida_jax.common.errors import UserError
from ida_jax.metrics.templates import fuse
from ida_jax.protocols.likelihood import FUSED_MEANS, likelihood_methods, likelihood_of_pairs
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.rescorer import Rescorer


class ImageVariances(NamedTuple):
    """What PFE adds to embeddings of images.

    Attributes:
      log_variances: [N, D], log σ² of the images, in the lists' order; may be a map of a file.
      anchors: [A, D], the anchors' log σ²; None where unknown, and then the likelihood is not put
        in the inner product's place.
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
    """{method: scores of the pairs, float32 [P]} by PFE's fusion and likelihood.

    A template's images are weighted by 1/σ² alone, not by media or the detector.

    Args:
      embeddings: floating point [N', D], of any norm.
      variances: of the same images, and of the anchors.
      templates: int [N], the images' templates.
      pairs: int [P, 2], rows of the T templates.
      scorers: {method: its Rescorer}; of cosine, ida_r and ida_l those that are there are joined
        with PFE.
      rows: int [N], the images' rows in embeddings and variances.

    Raises:
      UserError: shapes that differ, variances that are not finite, as `fuse`.
    """
    if variances.log_variances.shape != embeddings.shape:
        raise UserError(
            f"log σ² is {list(variances.log_variances.shape)} and the embeddings "
            f"{list(embeddings.shape)}: expected one of each entry, from one `embed --pfe`"
        )
    faces = ProbabilisticEmbeddings(
        *fuse(embeddings, variances.log_variances, templates, rows=rows)
    )
    terms = {
        name: scorers[method].terms(faces.means)
        for method, name in FUSED_MEANS.items()
        if method in scorers
    }
    scores = pair_scores(faces.means, pairs, terms)
    ida_r, ida_l = scorers.get("ida_r"), scorers.get("ida_l")
    anchors = None
    if ida_r is not None and variances.anchors is not None:
        if variances.anchors.shape != ida_r.anchors.embeddings.shape:
            raise UserError(
                f"the anchors' log σ² is {list(variances.anchors.shape)}, their embeddings "
                f"{list(ida_r.anchors.embeddings.shape)}: expected one of each entry"
            )
        anchors = ProbabilisticEmbeddings(
            np.asarray(ida_r.anchors.embeddings), np.asarray(variances.anchors)
        )
    methods = likelihood_methods(
        faces,
        anchors,
        k=10 if ida_r is None else ida_r.k,
        tau=1.0 if ida_r is None else ida_r.tau,
        ssr=None if ida_l is None else ida_l.regressor,
    )
    return scores | likelihood_of_pairs(faces, pairs, methods)
