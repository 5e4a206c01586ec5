"""The classification head of training: class weights, cosines and a margin loss's logits.

Source: ArcFace (Deng et al., CVPR 2019) and CosFace (Wang et al., CVPR 2018) for the normalised
weights; each loss's own in `ops.margin`; Sub-center ArcFace (Deng et al., ECCV 2020). The weights,
normalised, also serve as an anchor set (the paper's Table 4).

B batch, C classes, S sub-centres, D embedding.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ida_jax.common.errors import UserError
from ida_jax.ops import margin as ops
from ida_jax.ops.hypersphere import normalize

Margin = float | tuple[float, float, float] | None

# The articles' own; (1, 0.3, 0.2) is the first combined margin of ArcFace's Table 2.
_DEFAULT_MARGINS: dict[str, Margin] = {
    "arcface": 0.5,
    "cosface": 0.35,
    "l2_softmax": None,
    "sphereface": 4,
    "combined": (1.0, 0.3, 0.2),
    "adaface": 0.4,
}
MARGIN_LOSSES = tuple(_DEFAULT_MARGINS)


def default_margin(kind: str) -> Margin:
    """The kind's own margin; None for "l2_softmax", which has none."""
    if kind not in MARGIN_LOSSES:
        raise UserError(
            f"the margin head's kind is {kind!r}; choose one of {', '.join(MARGIN_LOSSES)}"
        )
    return _DEFAULT_MARGINS[kind]


class MarginHead(nn.Module):
    """Embeddings and labels to logits, with S learned weight vectors for each class.

    `__call__` is the loss written out, with all [B, C] logits; training computes the same blockwise
    and takes `label_logits` from here.

    Attributes:
      num_classes: C.
      kind: one of `MARGIN_LOSSES`.
      scale: s; the α of "l2_softmax".
      margin: m; the kind's own default if None. In radians for "arcface"; a difference of cosines
        for "cosface"; a whole number for "sphereface"; (m₁, m₂, m₃) for "combined". "l2_softmax"
        ignores it.
      sub_centres: S. A class's cosine is the largest over its sub-centres, so that mislabelled
        images gather at one of their own (3 in the article).
      straight_through: InsightFace's gradient in place of the exact one, for "arcface" and for
        "combined" with (1, m, 0), the same loss. InsightFace drops m₁ and m₂ where m₃ > 0: that is
        "cosface" with m₃, not "combined".
      interclass_filtering_threshold: t; where above 0, cosines above it to other classes than the
        label's count as 0, without gradient (arcface_torch, for noisy labels).

    Raises:
      UserError: at construction: an unknown kind, a margin out of the kind's range, S < 1, t out of
        0 ≤ t < 1, straight_through with another kind, or with another combined margin.
    """

    num_classes: int
    kind: str = "arcface"
    scale: float = 64.0
    margin: Margin = None
    sub_centres: int = 1
    straight_through: bool = False
    interclass_filtering_threshold: float = 0.0

    def __post_init__(self) -> None:
        _check_margin(self.kind, self._margin())
        if self.sub_centres < 1:
            raise UserError(f"sub_centres is {self.sub_centres}: expected 1 or more")
        if not 0 <= self.interclass_filtering_threshold < 1:
            raise UserError(
                f"interclass_filtering_threshold is {self.interclass_filtering_threshold}: "
                "expected a cosine below 1, such as 0.4, or 0 for none"
            )
        of_arcface = self.kind == "arcface"
        if self.kind == "combined":
            of_arcface = self._margin()[0] == 1 and self._margin()[2] == 0
        if self.straight_through and not of_arcface:
            raise UserError(
                f"straight_through is set with the head {self.kind!r} and the margin "
                f"{self._margin()}: it is for arcface, and for combined with (1, m, 0)"
            )
        super().__post_init__()

    def label_logits(self, cosines: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """The labels' logits from their cosines; needs no parameters, so no binding either.

        Args:
          cosines: [B], in [−1, 1].
          quality: [B], from `ops.margin.adaface_quality`; for "adaface", and only for it.

        Returns:
          float32 [B].
        """
        margin = self._margin()
        if self.kind == "arcface":
            return ops.arcface(
                cosines, scale=self.scale, margin=margin, straight_through=self.straight_through
            )
        if self.kind == "cosface":
            return ops.cosface(cosines, scale=self.scale, margin=margin)
        if self.kind == "sphereface":
            return ops.sphereface(cosines, scale=self.scale, margin=int(margin))
        if self.kind == "combined":
            return ops.combined(
                cosines,
                scale=self.scale,
                margins=margin,
                straight_through=self.straight_through,
            )
        if self.kind == "adaface":
            return ops.adaface(cosines, quality, scale=self.scale, margin=margin)
        return ops.l2_softmax(cosines, scale=self.scale)

    @nn.compact
    def __call__(
        self, embeddings: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """The logits for `ops.margin.cross_entropy`.

        The parameter "weight" is [C, D], or [C, S, D] with sub-centres. "adaface" keeps its running
        statistics as "norm_mean" and "norm_std" in the collection "batch_stats", and updates them
        where that is mutable.

        Args:
          embeddings: [B, D], of any norm.
          labels: int [B], 0 … C−1.
          mask: bool [B], False for rows that only pad the batch: they enter no statistics.

        Returns:
          float32 [B, C].
        """
        embeddings = embeddings.astype(jnp.float32)
        centres = () if self.sub_centres == 1 else (self.sub_centres,)
        shape = (self.num_classes, *centres, embeddings.shape[-1])
        weight = self.param("weight", nn.initializers.normal(0.01), shape, jnp.float32)
        # What TPUs and GPUs round products to by default moves a cosine in its third digit; near 1
        # the margin's √(1 − c²) magnifies that.
        cosines = jnp.einsum(
            "bd,c...d->bc...",
            normalize(embeddings),
            normalize(weight),
            precision=lax.Precision.HIGHEST,
        )
        if self.sub_centres > 1:
            cosines = jnp.max(cosines, axis=-1)
        cosines = jnp.clip(cosines, -1.0, 1.0)
        if (t := self.interclass_filtering_threshold) > 0:
            is_label = labels[:, None] == jnp.arange(self.num_classes)[None, :]
            cosines = jnp.where((cosines > t) & ~is_label, 0.0, cosines)
        quality = self._quality(embeddings, mask) if self.kind == "adaface" else None
        of_label = self.label_logits(ops.at_label(cosines, labels), quality)
        return ops.replace_at_label(self.scale * cosines, labels, of_label)

    def _quality(self, embeddings: jax.Array, mask: jax.Array | None) -> jax.Array:
        initial = ops.initial_norm_statistics()
        mean = self.variable("batch_stats", "norm_mean", lambda: initial.mean)
        std = self.variable("batch_stats", "norm_std", lambda: initial.std)
        norms = jnp.linalg.norm(lax.stop_gradient(embeddings), axis=-1)
        quality = ops.adaface_quality(norms, ops.NormStatistics(mean.value, std.value), mask=mask)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean.value, std.value = quality.statistics
        return quality.quality

    def _margin(self) -> Margin:
        default = default_margin(self.kind)
        return default if self.margin is None else self.margin


def _check_margin(kind: str, margin: Margin) -> None:
    """Raises UserError where the margin is not one of the kind's."""
    if kind == "l2_softmax":
        return
    if kind == "combined":
        valid = isinstance(margin, tuple | list) and len(margin) == 3
        valid = valid and margin[0] > 0 and 0 <= margin[1] < math.pi / 2 and margin[2] >= 0
        expected = "three numbers (m₁ > 0, 0 ≤ m₂ < π/2, m₃ ≥ 0)"
    elif not isinstance(margin, int | float):
        valid, expected = False, "a number"
    elif kind == "sphereface":
        valid, expected = margin >= 1 and margin == int(margin), "a whole number ≥ 1"
    elif kind == "cosface":
        valid, expected = 0 <= margin < 2, "0 ≤ m < 2"
    else:
        valid, expected = 0 <= margin < math.pi / 2, "0 ≤ m < π/2"
    if not valid:
        raise UserError(f"the margin of the head {kind!r} is {margin}: expected {expected}")
