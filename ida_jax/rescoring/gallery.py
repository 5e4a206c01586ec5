"""Identification, 1:N: the gallery's faces with the highest scores, exactly.

The density of a gallery face changes its rank, so that no short list by cosine is reranked: every
gallery face's score is computed, by blocks on the device.

M probes, G gallery faces, D embedding, S numbers a face.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ida_jax.common.devices import block_size, padded
from ida_jax.common.errors import UserError
from ida_jax.ops.hypersphere import Neighbours, blockwise_top_k
from ida_jax.rescoring.terms import FaceTerms, pair_score

# 512 × 8192 similarities are 16 MiB.
_PROBE_BLOCKS = (1, 16, 64, 512)
_GALLERY_BLOCK = 8192


class Gallery(NamedTuple):
    """Enrolled faces, on the device, with their densities: made once, searched many times.

    Attributes:
      embeddings: float32 [G, D], unit rows.
      terms: the method's numbers of each face.
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
      probe_terms: the same method's numbers of the probes.
      gallery: the enrolled faces.
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
    m = len(probes)
    values, constants = jax.device_put(gallery.terms.values), jax.device_put(probe_terms.constants)
    found = Candidates(np.empty((m, top), np.float32), np.empty((m, top), np.int32))
    block = block_size(_PROBE_BLOCKS, m)
    for start in range(0, m, block):
        rows = slice(start, start + block)
        faces, own = (padded(x[rows], block) for x in (probes, probe_terms.values))
        scores, columns = _best(
            probe_terms.rule, top, min(_GALLERY_BLOCK, len(gallery)),
            faces, own, gallery.embeddings, values, constants,
        )  # fmt: skip
        found.scores[rows] = np.asarray(scores)[: m - start]
        found.rows[rows] = np.asarray(columns)[: m - start]
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _best(
    rule: str,
    top: int,
    block: int,
    probes: jax.Array,
    probe_values: jax.Array,
    gallery: jax.Array,
    gallery_values: jax.Array,
    constants: jax.Array,
) -> Neighbours:
    m, g = probes.shape[0], gallery.shape[0]
    block = max(block, top)

    def scores(first: jax.Array) -> jax.Array:
        faces = lax.dynamic_slice_in_dim(gallery, first, block)
        values = lax.dynamic_slice_in_dim(gallery_values, first, block)
        cosine = jnp.matmul(probes, faces.T, precision=lax.Precision.HIGHEST)
        return pair_score(rule, cosine, values[None, :, :], probe_values[:, None, :], constants)

    return blockwise_top_k(scores, (m, g), k=top, block_size=block)
