"""arcface_torch's MobileFaceNet: the networks "mbf" and "mbf_large" of InsightFace's configs.

Source: deepinsight/insightface, recognition/arcface_torch/backbones/mobilefacenet.py. It differs
from `ida_jax.models.mobilefacenet`: PReLU everywhere, expansions of fixed widths, a multiple of
the article's widths between them, no bias in the output. Its second convolution has 64 groups, so
that with the twofold width each has two channels.

    stem 3×3 /2 to 64 s │ 3×3 in 64 groups, or residuals │ for each further stage a bottleneck with
    stride 2, residuals │ 1×1 to 512 │ the whole map, depthwise │ D

B batch, H and W image size, C channels, D embedding, s scale. Images and maps are [B, H, W, C].
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ida_jax.models.mobilefacenet import DepthwiseConv, GlobalDepthwiseConv
from ida_jax.models.resnet import BatchNorm, PReLU

# Of the stages 1 … 4: the width, times the scale; what their residuals expand to; and what the
# bottleneck before them does, which no scale changes.
WIDTHS = (64, 64, 128, 128)
RESIDUALS = (128, 128, 256, 256)
BOTTLENECKS = (None, 128, 256, 512)
STEM_GROUPS = 64
OUTPUT_CHANNELS = 512
# theirs: kaiming_normal_(mode="fan_out", nonlinearity="relu") for every layer
_INITIAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class MBF(nn.Module):
    """Images to embeddings.

    Attributes:
      blocks: residuals of the four stages; a first number of 1 stands for the grouped convolution.
      scale: of the widths between the expansions.
      embedding_dim: D.
      dtype, batch_norm_groups, remat: as in `models.resnet.IResNet`; float32 are all layers from
        the last 1×1 convolution on.
    """

    blocks: tuple[int, ...] = (1, 4, 6, 2)
    scale: int = 2
    embedding_dim: int = 512
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """The embeddings of a batch, not normalised.

        The last depthwise convolution covers the whole map, 7×7 at 112 pixels: its size follows
        from H and W, which so are part of a trained network. Training updates "batch_stats".

        Args:
          images: float [B, H, W, 3], normalised as for training (RGB, (x/255 − 0.5)/0.5).
          mask: bool [B], False for rows that only pad the batch: they enter no statistics.

        Returns:
          float32 [B, D].
        """
        options = {"dtype": self.dtype, "batch_norm_groups": self.batch_norm_groups}
        stats = {"train": train, "mask": mask}
        # Only in training, so that an exported network has no trace of it.
        bottleneck = Bottleneck
        if self.remat and train:
            bottleneck = nn.remat(Bottleneck, static_argnums=(2,))

        def activated(x: jax.Array, name: str, dtype: Any = self.dtype) -> jax.Array:
            norm = BatchNorm(dtype=dtype, groups=self.batch_norm_groups, name=f"{name}_bn")
            return PReLU(name=f"{name}_prelu")(norm(x, **stats))

        width = WIDTHS[0] * self.scale
        x = nn.Conv(
            width, (3, 3), (2, 2), ((1, 1), (1, 1)), use_bias=False, dtype=self.dtype,
            kernel_init=_INITIAL, name="stem",
        )(images)  # fmt: skip
        x = activated(x, "stem")
        for stage, repeats in enumerate(self.blocks, start=1):
            width = WIDTHS[stage - 1] * self.scale
            if stage == 1 and repeats == 1:
                x = DepthwiseConv(
                    dtype=self.dtype, group_size=width // STEM_GROUPS, kernel_init=_INITIAL,
                    name="grouped",
                )(x)  # fmt: skip
                x = activated(x, "grouped")
                continue
            if (inner := BOTTLENECKS[stage - 1]) is not None:
                down = bottleneck(inner, width, 2, **options, name=f"down{stage}")
                x = down(x, train, mask)
            for index in range(1, repeats + 1):
                residual = bottleneck(
                    RESIDUALS[stage - 1], width, 1, **options, name=f"stage{stage}_block{index}"
                )
                x = x + residual(x, train, mask)

        dense = partial(nn.Dense, use_bias=False, kernel_init=_INITIAL)
        x = dense(OUTPUT_CHANNELS, name="separate")(x.astype(jnp.float32))
        x = activated(x, "separate", jnp.float32)
        # For the uncertainty module; nothing unless the collection is asked for.
        self.sow("intermediates", "feature_map", x)
        norm = partial(BatchNorm, groups=self.batch_norm_groups)
        x = norm(name="global_bn")(
            GlobalDepthwiseConv(kernel_init=_INITIAL, name="global")(x), **stats
        )
        return norm(name="embedding_bn")(dense(self.embedding_dim, name="fc")(x), **stats)


class Bottleneck(nn.Module):
    """1×1 to `inner` channels, 3×3 depthwise with the stride, 1×1 to the width.

    BatchNorm follows each, PReLU the first two.
    """

    inner: int
    width: int
    stride: int
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1

    # By position: what nn.remat may take as static, it knows by its index.
    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, width]."""
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=_INITIAL)
        norm = partial(BatchNorm, dtype=self.dtype, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}

        y = norm(name="expand_bn")(dense(self.inner, name="expand")(x), **stats)
        y = PReLU(name="expand_prelu")(y)
        y = DepthwiseConv(self.stride, self.dtype, kernel_init=_INITIAL, name="depthwise")(y)
        y = PReLU(name="depthwise_prelu")(norm(name="depthwise_bn")(y, **stats))
        return norm(name="project_bn")(dense(self.width, name="project")(y), **stats)


mbf = MBF
mbf_large = partial(MBF, blocks=(2, 8, 12, 4), scale=4)
