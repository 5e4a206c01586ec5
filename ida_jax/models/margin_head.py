"""The classification head of training: class weights, cosines and a margin loss's logits.

Source: ArcFace (Deng et al., CVPR 2019) and CosFace (Wang et al., CVPR 2018) for the normalised
weights; L2-constrained softmax (Ranjan et al., 2017). Its weights, normalised, also serve as an
anchor set (the paper's Table 4).

B batch, C classes, D embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ida_jax.errors import UserError
from ida_jax.ops import margin
from ida_jax.ops.hypersphere import normalize

KINDS = ("arcface", "cosface", "l2_softmax")


class MarginHead(nn.Module):
    """Embeddings and labels to logits, with one learned weight vector a class.

    Attributes:
      num_classes: C.
      kind: "arcface", "cosface" or "l2_softmax".
      scale: s; the α of "l2_softmax".
      margin: m; the kind's own default if None (ArcFace 0.5, CosFace 0.35). "l2_softmax" has none.
    """

    num_classes: int
    kind: str = "arcface"
    scale: float = 64.0
    margin: float | None = None

    @nn.compact
    def __call__(self, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
        """The logits for `ops.margin.cross_entropy`.

        Args:
          embeddings: [B, D], of any norm.
          labels: int [B], 0 … C−1.

        Returns:
          float32 [B, C].

        Raises:
          UserError: an unknown kind.
        """
        shape = (self.num_classes, embeddings.shape[-1])
        weight = self.param("weight", nn.initializers.normal(0.01), shape, jnp.float32)
        # What TPUs and GPUs round products to by default moves a cosine in its third digit; near 1
        # the margin's √(1 − c²) magnifies that.
        cosines = jnp.matmul(
            normalize(embeddings.astype(jnp.float32)),
            normalize(weight).T,
            precision=lax.Precision.HIGHEST,
        )
        cosines = jnp.clip(cosines, -1.0, 1.0)
        options = {"scale": self.scale}
        if self.margin is not None:
            options["margin"] = self.margin
        if self.kind == "arcface":
            return margin.arcface_logits(cosines, labels, **options)
        if self.kind == "cosface":
            return margin.cosface_logits(cosines, labels, **options)
        if self.kind == "l2_softmax":
            return margin.l2_softmax_logits(cosines, scale=self.scale)
        raise UserError(
            f"the margin head's kind is {self.kind!r}; choose one of {', '.join(KINDS)}"
        )
