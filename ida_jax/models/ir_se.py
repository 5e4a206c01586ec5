"""Residual networks with squeeze-and-excitation: "ir_se50", "ir_se100", "ir_se152".

Source: the older ArcFace zoo in PyTorch (TreB1eN/InsightFace_Pytorch, model.py, mode "ir_se"); Hu
et al., "Squeeze-and-Excitation Networks" (CVPR 2018). It differs from `models.resnet.IResNet`: no
BatchNorm between a block's first convolution and its PReLU, a gate for each channel at its end, a
shortcut without weights where the width stays, and a scale in the last BatchNorm.

B batch, H and W image size, C channels, D embedding. Images and maps are [B, H, W, C].
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ida_jax.models.resnet import BatchNorm, PReLU
from ida_jax.ops.convolution import conv_of_layer

# A gate's inner layer has C / 16 channels.
REDUCTION = 16
_conv = partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.normal(0.1),
    conv_general_dilated=conv_of_layer,
)
_conv3x3 = partial(_conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)))


class IRSE(nn.Module):
    """Images to embeddings.

    Attributes:
      stage_sizes: blocks in each stage; a stage's first block halves the resolution.
      widths: channels of each stage; the stem has those of the first.
      embedding_dim: D.
      dropout_rate: before the fully connected layer.
      dtype, batch_norm_groups, remat: as in `models.resnet.IResNet`; gates are float32.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_dim: int = 512
    dropout_rate: float = 0.4
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """The embeddings of a batch, not normalised; arguments as those of `IResNet`."""
        norm = partial(BatchNorm, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}
        # Only in training, so that an exported network has no trace of it.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat and train else Block
        block = partial(block, dtype=self.dtype, batch_norm_groups=self.batch_norm_groups)

        x = _conv3x3(self.widths[0], dtype=self.dtype, name="stem_conv")(images)
        x = PReLU(name="stem_prelu")(norm(dtype=self.dtype, name="stem_bn")(x, **stats))
        for stage, (size, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True), start=1
        ):
            for index in range(size):
                stride = 2 if index == 0 else 1
                x = block(width, stride, name=f"stage{stage}_block{index + 1}")(x, train, mask)

        x = norm(name="output_bn")(x, **stats)
        # For the uncertainty module; nothing unless the collection is asked for.
        self.sow("intermediates", "feature_map", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x.reshape(x.shape[0], -1))
        x = nn.Dense(self.embedding_dim, name="fc")(x)
        return norm(name="embedding_bn")(x, **stats)


class Block(nn.Module):
    """BN → 3×3 → PReLU → 3×3 with the stride → BN → gate, plus the shortcut."""

    width: int
    stride: int
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1

    # By position: what nn.remat may take as static, it knows by its index.
    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, width]."""
        norm = partial(BatchNorm, dtype=self.dtype, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}
        strides = (self.stride, self.stride)

        y = norm(name="bn1")(x, **stats)
        y = PReLU(name="prelu")(_conv3x3(self.width, dtype=self.dtype, name="conv1")(y))
        y = _conv3x3(self.width, strides=strides, dtype=self.dtype, name="conv2")(y)
        y = norm(name="bn2")(y, **stats)
        y = y * Gate(name="gate")(y).astype(y.dtype)
        narrower = x.shape[-1] != self.width
        x = x[:, :: self.stride, :: self.stride]
        if narrower:
            x = _conv(self.width, (1, 1), dtype=self.dtype, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x, **stats)
        return x + y


class Gate(nn.Module):
    """A factor for each channel: σ(W₂ max(W₁ · mean over the map, 0)), in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → float32 [B, 1, 1, C]."""
        channels = x.shape[-1]
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        inner = nn.relu(nn.Dense(channels // REDUCTION, use_bias=False, name="fc1")(mean))
        return nn.sigmoid(nn.Dense(channels, use_bias=False, name="fc2")(inner))


ir_se50 = partial(IRSE, stage_sizes=(3, 4, 14, 3))
ir_se100 = partial(IRSE, stage_sizes=(3, 13, 30, 3))
ir_se152 = partial(IRSE, stage_sizes=(3, 8, 36, 3))
