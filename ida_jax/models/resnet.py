"""The face recognition residual network ("iresnet") that the paper trains.

Source: ArcFace (Deng et al., CVPR 2019), as InsightFace builds it; the paper's section 4.1 takes
over its BN-Dropout-FC-BN output, at D = 256. It differs from the ImageNet ResNet: a 3×3 stem that
keeps the resolution, BatchNorm before a block's first convolution, PReLU, the stride on a block's
second convolution, nothing after the sum, and a fully connected output over the whole map.

B batch, H and W image size, C channels, D embedding. Images and maps are [B, H, W, C].
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# InsightFace's initialisation of every convolution.
_conv = partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.normal(0.1))
_conv3x3 = partial(_conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)))


class PReLU(nn.Module):
    """max(x, 0) + aᵢ · min(x, 0) with one learned slope aᵢ a channel, 0.25 at first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] → [..., C], in x's type."""
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        slope = slope.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        # As a factor of x, the backward pass keeps nothing beside x: a third of the memory less.
        return x * jnp.where(x >= 0, jnp.ones((), x.dtype), slope)


class BatchNorm(nn.Module):
    """(x − mean) / √(var + 1e-5) · scale + bias by channel, computed in float32.

    In training the statistics are those of the rows that `mask` marks, over the whole batch even
    where it is sharded over devices; the running ones move by 0.1 (Flax's momentum 0.9, PyTorch's
    0.1). The running variance is the biased one, where PyTorch keeps the unbiased one.

    Flax's own BatchNorm is the same function. Written as x · a + b it keeps x alone for the
    backward pass, where Flax's keeps x − mean too.
    """

    dtype: Any = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, ..., C] → [B, ..., C] in `dtype`; mask is bool [B], True for the real rows."""
        channels = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            if mask is not None:
                mask = mask.reshape((-1,) + (1,) * (x.ndim - 1))
            mean = jnp.mean(x, axes, where=mask)
            # Rounding can take the difference below zero.
            var = jnp.maximum(jnp.mean(x * x, axes, where=mask) - mean * mean, 0.0)
            if not self.is_initializing():
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var
        else:
            mean, var = running_mean.value, running_var.value
        factor = jax.lax.rsqrt(var + 1e-5)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones, channels, jnp.float32)
        offset = self.param("bias", nn.initializers.zeros, channels, jnp.float32) - mean * factor
        shape = (1,) * (x.ndim - 1) + channels
        return (x * factor.reshape(shape) + offset.reshape(shape)).astype(self.dtype)


class Block(nn.Module):
    """BN → 3×3 → BN → PReLU → 3×3 with the stride → BN, plus the shortcut."""

    width: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, width]."""
        norm = partial(BatchNorm, dtype=self.dtype)
        stats = {"train": train, "mask": mask}
        strides = (self.stride, self.stride)

        y = norm(name="bn1")(x, **stats)
        y = _conv3x3(self.width, dtype=self.dtype, name="conv1")(y)
        y = norm(name="bn2")(y, **stats)
        y = PReLU(name="prelu")(y)
        y = _conv3x3(self.width, strides=strides, dtype=self.dtype, name="conv2")(y)
        y = norm(name="bn3")(y, **stats)
        if x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            x = _conv(self.width, (1, 1), dtype=self.dtype, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x, **stats)
        return x + y


class IResNet(nn.Module):
    """Images to embeddings.

    Attributes:
      stage_sizes: residual blocks in each stage; a stage's first block halves the resolution.
      widths: channels of each stage; the stem has those of the first.
      embedding_dim: D. The paper has 256.
      dropout_rate: before the fully connected layer (ArcFace's original: 0.4).
      dtype: of the convolutions' computation, float32 or bfloat16. Parameters, BatchNorm, the
        fully connected layer and the embeddings are float32 in either case.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_dim: int = 256
    dropout_rate: float = 0.4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """The embeddings of a batch, not normalised.

        The fully connected layer's size follows from H and W, which so are part of a trained
        network. Training updates the collection "batch_stats" and draws from the key "dropout".

        Args:
          images: float [B, H, W, 3], normalised as for training (RGB, (x/255 − 0.5)/0.5).
          train: batch statistics and dropout, or the running statistics and none.
          mask: bool [B], False for rows that only pad the batch: they enter no statistics.

        Returns:
          float32 [B, D].
        """
        norm = partial(BatchNorm, dtype=self.dtype)
        stats = {"train": train, "mask": mask}

        x = _conv3x3(self.widths[0], dtype=self.dtype, name="stem_conv")(images)
        x = norm(name="stem_bn")(x, **stats)
        x = PReLU(name="stem_prelu")(x)
        for stage, (size, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True), start=1
        ):
            for block in range(size):
                stride = 2 if block == 0 else 1
                name = f"stage{stage}_block{block + 1}"
                x = Block(width, stride, self.dtype, name=name)(x, **stats)

        x = BatchNorm(name="output_bn")(x, **stats)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = nn.Dense(self.embedding_dim, name="fc")(x)
        return BatchNorm(use_scale=False, name="embedding_bn")(x, **stats)


iresnet18 = partial(IResNet, (2, 2, 2, 2))
iresnet34 = partial(IResNet, (3, 4, 6, 3))
iresnet50 = partial(IResNet, (3, 4, 14, 3))
iresnet100 = partial(IResNet, (3, 13, 30, 3))
iresnet200 = partial(IResNet, (6, 26, 60, 6))
# Not from the literature: small enough to train on a laptop's CPU in minutes.
iresnet_nano = partial(IResNet, (1, 1, 1, 1), (16, 32, 64, 128))
