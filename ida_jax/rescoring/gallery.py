"""Identification, 1:N: the gallery's faces with the highest scores, exactly.

The density of a gallery face changes its rank, so that no short list by cosine is reranked: every
gallery face's score is computed, by blocks on the device.

M probes, G gallery faces, D embedding, S numbers a face.
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from ida_jax.common.devices import by_blocks
from ida_jax.common.errors import UserError
from ida_jax.ops.hypersphere import Neighbours, blockwise_top_k
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import cosines, rule_scores, take_rows

# 512 × 8192 similarities are 16 MiB.
PROBE_BLOCKS = (1, 16, 64, 512)
GALLERY_BLOCK = 8192


class Gallery(NamedTuple):
    """Enrolled faces, on the device, with their densities: made once, searched many times.

    Attributes:
      embeddings: float32 [G, D], unit rows.
    """

    embeddings: jax.Array
    terms: FaceTerms

    def __len__(self) -> int:
        return self.embeddings.shape[0]


class Candidates(NamedTuple):
    """Each probe's best gallery faces, the best first.

    Attributes:
      scores: float32 [M, top].
      rows: int32 [M, top], rows of the gallery.
    """

    scores: np.ndarray
    rows: np.ndarray


def identify(
    probes: np.ndarray, probe_terms: FaceTerms, gallery: Gallery, *, top: int = 10
) -> Candidates:
    """The `top` gallery faces of each probe by the method's score.

    In the rule the gallery's face is the first, enrolled one, the probe the second.

    Args:
      probes: float32 [M, D], unit rows.
      top: how many, 1 ≤ top ≤ G.

    Raises:
      UserError: widths that differ, `top` outside 1 … G, terms of another method.
    """
    probe_terms.check(len(probes))
    if probe_terms.rule != gallery.terms.rule:
        raise UserError(
            f"the gallery was made for {gallery.terms.rule}, the probes for {probe_terms.rule}: "
            "make both with one Rescorer"
        )
    if probes.shape[1] != gallery.embeddings.shape[1]:
        raise UserError(
            f"the probes' embeddings are {probes.shape[1]} wide, the gallery's "
            f"{gallery.embeddings.shape[1]}: both must come from the same model"
        )
    if not 1 <= top <= len(gallery):
        raise UserError(
            f"the best {top} of {len(gallery)} gallery faces were asked for: "
            f"expected 1 … {len(gallery)}"
        )
    block, terms = max(top, min(GALLERY_BLOCK, len(gallery))), jax.device_put(gallery.terms)

    def best(faces: np.ndarray, values: np.ndarray) -> Neighbours:
        own = probe_terms._replace(values=values)
        return best_of_gallery(top, block, faces, own, gallery.embeddings, terms)

    return Candidates(*by_blocks(best, probes, probe_terms.values, sizes=PROBE_BLOCKS))


@partial(jax.jit, static_argnums=(0, 1))
def best_of_gallery(
    top: int,
    block: int,
    probes: jax.Array,
    probe_terms: FaceTerms,
    gallery: jax.Array,
    gallery_terms: FaceTerms,
) -> Neighbours:
    """The `top` gallery faces of each probe, the gallery taken by blocks; as `identify`."""

    def scores(first: jax.Array) -> jax.Array:
        cosine = cosines(probes, lax.dynamic_slice_in_dim(gallery, first, block))
        enrolled = take_rows(gallery_terms, first, block)
        return rule_scores(cosine, probe_terms, enrolled, enrolled="columns")

    return blockwise_top_k(scores, (len(probes), len(gallery)), k=top, block_size=block)
