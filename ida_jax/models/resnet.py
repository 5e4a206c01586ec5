"""The face recognition residual network ("iresnet") that the paper trains.

Source: ArcFace (Deng et al., CVPR 2019), as InsightFace builds it; the paper's section 4.1 takes
over its BN-Dropout-FC-BN output, at D = 256. It differs from the ImageNet ResNet: a 3×3 stem that
keeps the resolution, BatchNorm before a block's first convolution, PReLU, the stride on a block's
second convolution, nothing after the sum, and a fully connected output over the whole map.

BatchNorm uses the global batch unless `train.batch_norm` is `per_device` or `frozen`. On a pod with
few images a chip its 300 small all-reduces are most of a step, which `ida_jax.plan` shows.

B batch, H and W image size, C channels, D embedding. Images and maps are [B, H, W, C].
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ida_jax.common.errors import UserError
from ida_jax.ops.channel_affine import add_affine, affine, affine_prelu, channel_sums
from ida_jax.ops.convolution import conv, conv_of_layer
from ida_jax.ops.normalised_conv import normalised_conv

# InsightFace's initialisation of every convolution.
_conv = partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.normal(0.1),
    conv_general_dilated=conv_of_layer,
)
_conv3x3 = partial(_conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)))


class PReLU(nn.Module):
    """max(x, 0) + sᵢ · min(x, 0) with one learned slope sᵢ a channel, 0.25 at first."""

    @nn.compact
    def slope(self, channels: int) -> jax.Array:
        """The slopes, float32 [C]."""
        return self.param("slope", nn.initializers.constant(0.25), (channels,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] → [..., C], in x's type."""
        slope = self.slope(x.shape[-1]).astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        # As a factor of x, the backward pass keeps nothing beside x: a third of the memory less.
        return x * jnp.where(x >= 0, jnp.ones((), x.dtype), slope)


class BatchNorm(nn.Module):
    """(x − mean) / √(var + 1e-5) · scale + bias by channel, computed in float32.

    In training the statistics are those of the rows that `mask` marks, within each of `groups`
    equal parts of the batch. One group is the whole batch, even where it is sharded over devices:
    what PyTorch calls SyncBatchNorm, and usual on TPUs. As many groups as devices is BatchNorm per
    device, as PyTorch's DDP has it and so InsightFace's arcface_torch; devices then exchange
    nothing in the forward pass but the running statistics. No group is frozen BatchNorm: training,
    too, normalises by the running statistics and leaves them as they are, while scale and bias are
    trained; as PyTorch's after `.eval()` of its BatchNorm modules.

    Those move by 0.1 (Flax's momentum 0.9, PyTorch's 0.1) towards the mean over the groups of their
    means and of their variances, where InsightFace saves its first device's own. The running
    variance is the biased one, where PyTorch keeps the unbiased one. A group that is all padding
    has no part in it.

    Flax's own BatchNorm is the same function of one group. Written as x · a + b it keeps x alone
    for the backward pass, where Flax's keeps x − mean too; and what a and b are for, `affine` gives
    to those who compute x · a + b together with something else.
    """

    dtype: Any = jnp.float32
    use_scale: bool = True
    groups: int = 1

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """[B, ..., C] → [B, ..., C] in `dtype`; mask is bool [B], True for the real rows.

        Raises:
          UserError: in training, B is not a multiple of the groups.
        """
        x = x.astype(jnp.float32)
        return affine(x, *self.affine(x, train=train, mask=mask), self.dtype)

    @nn.compact
    def affine(
        self,
        x: jax.Array,
        *,
        train: bool,
        mask: jax.Array | None = None,
        without: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(a, b) of x · a + b, float32 [G, C] each; G is 1 where the running statistics are used.

        Args:
          x: float32 [B, ..., C].
          mask: bool [B], True for the real rows.
          without: float32 [C], what x lacks, the same on all rows: only the running mean has it.
        """
        channels = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        groups = 1 if self.is_initializing() else self.groups
        if train and groups:
            if len(x) % groups:
                raise UserError(
                    f"BatchNorm has {groups} groups and the batch {len(x)} rows: expected a "
                    "multiple; change train.batch_size or batch_norm_groups"
                )
            # Neighbours together: a sharded batch then stays in place.
            real = None if mask is None else mask.reshape(groups, -1)
            mean, var = _group_statistics(x, real, groups)
            if not self.is_initializing():
                whole = mean if without is None else mean + without[None]
                for running, batch in ((running_mean, whole), (running_var, var)):
                    running.value = _moved(running.value, batch, real)
        else:
            mean, var = running_mean.value[None], running_var.value[None]
        factor = jax.lax.rsqrt(var + 1e-5)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
            factor = factor * scale[None]
        offset = self.param("bias", nn.initializers.zeros, channels, jnp.float32)[None]
        return factor, offset - mean * factor


def _group_statistics(
    x: jax.Array, real: jax.Array | None, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [G, C] of the real rows of [B, ..., C]; 0 where a group has none."""
    values = jnp.full((groups, 1), len(x) // groups, jnp.float32)
    if real is not None:
        x = jnp.where(real.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0.0)
        values = jnp.maximum(jnp.sum(real.astype(jnp.float32), axis=1, keepdims=True), 1.0)
    values = values * float(math.prod(x.shape[1:-1]))
    mean, mean_square = channel_sums((x, x * x), groups) / values[None]
    # Rounding can take the difference below zero.
    return mean, jnp.maximum(mean_square - mean * mean, 0.0)


def _moved(running: jax.Array, batch: jax.Array, real: jax.Array | None) -> jax.Array:
    """The running statistic [C] after a step whose groups had [G, C]."""
    if real is None:
        return 0.9 * running + 0.1 * jnp.mean(batch, axis=0)
    counts = jnp.any(real, axis=1)
    groups = jnp.maximum(jnp.sum(counts.astype(jnp.float32)), 1.0)
    mean = jnp.sum(batch, axis=0, where=counts[:, None]) / groups
    return jnp.where(jnp.any(counts), 0.9 * running + 0.1 * mean, running)


class _Kernel(nn.Module):
    """A 3×3 convolution's parameter alone."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The kernel, float32 [3, 3, C, width], for x, [B, H, W, C]."""
        shape = (3, 3, x.shape[-1], self.width)
        return self.param("kernel", nn.initializers.normal(0.1), shape, jnp.float32)


class Block(nn.Module):
    """BN → 3×3 → BN → PReLU → 3×3 with the stride → BN, plus the shortcut.

    In training the first BatchNorm is folded into its convolution (`ops.normalised_conv`); not with
    several groups, each of which would need a kernel of its own, and not with frozen statistics.
    """

    width: int
    stride: int
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1

    # By position: what nn.remat may take as static, it knows by its index.
    @nn.compact
    def __call__(
        self, x: tuple[jax.Array, jax.Array], train: bool, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, width], each given twice (`add_affine`)."""
        x, again = x
        norm = partial(BatchNorm, dtype=self.dtype, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}
        strides = (self.stride, self.stride)

        bn1, bn2 = norm(name="bn1"), norm(name="bn2")
        kernel = _Kernel(self.width, name="conv1")(x)
        if train and self.batch_norm_groups == 1 and not self.is_initializing():
            wide = again.astype(jnp.float32)
            factor, offset = bn1.affine(wide, **stats)
            with jax.named_scope("conv1"):  # for profiles, as of a layer
                y, constant = normalised_conv(wide, factor[0], offset[0], kernel, self.dtype)
        else:
            y, constant = bn1(again, **stats), None
            with jax.named_scope("conv1"):
                y = conv(y, kernel.astype(self.dtype)).astype(jnp.float32)
        normal = bn2.affine(y, without=constant, **stats)
        slope = PReLU(name="prelu").slope(self.width)
        with jax.named_scope("prelu"):
            y = affine_prelu(y, *normal, slope, self.dtype)
        y = _conv3x3(self.width, strides=strides, dtype=self.dtype, name="conv2")(y)
        y = y.astype(jnp.float32)
        normal = norm(name="bn3").affine(y, **stats)
        if x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            x = _conv(self.width, (1, 1), dtype=self.dtype, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x, **stats)
        return add_affine(x, y, *normal)


class IResNet(nn.Module):
    """Images to embeddings.

    Attributes:
      stage_sizes: residual blocks in each stage; a stage's first block halves the resolution.
      widths: channels of each stage; the stem has those of the first.
      embedding_dim: D. The paper has 256.
      dropout_rate: before the fully connected layer (ArcFace's original: 0.4).
      dtype: of the convolutions' computation, float32, bfloat16 or float16. Parameters, BatchNorm,
        the fully connected layer and the embeddings are float32 in any case.
      batch_norm_groups: parts of the batch that have BatchNorm statistics of their own; 1, the
        whole batch, or the device count as under PyTorch's DDP; or 0: the running statistics,
        frozen (`BatchNorm`).
      remat: a block keeps its input alone for the backward pass, which computes the rest again:
        less memory (43 % in iresnet50) for a third more arithmetic. Same parameters, same outputs.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_dim: int = 256
    dropout_rate: float = 0.4
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1
    remat: bool = False

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
        norm = partial(BatchNorm, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}
        # Only in training, so that an exported network has no trace of it.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat and train else Block
        block = partial(block, dtype=self.dtype, batch_norm_groups=self.batch_norm_groups)

        x = _conv3x3(self.widths[0], dtype=self.dtype, name="stem_conv")(images)
        x = x.astype(jnp.float32)
        normal = norm(name="stem_bn").affine(x, **stats)
        slope = PReLU(name="stem_prelu").slope(self.widths[0])
        x = affine_prelu(x, *normal, slope, self.dtype)
        x = x, x
        for stage, (size, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True), start=1
        ):
            for index in range(size):
                stride = 2 if index == 0 else 1
                x = block(width, stride, name=f"stage{stage}_block{index + 1}")(x, train, mask)

        x = norm(name="output_bn")(x[1], **stats)
        # For the uncertainty module; nothing unless the collection is asked for.
        self.sow("intermediates", "feature_map", x)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = nn.Dense(self.embedding_dim, name="fc")(x)
        return norm(use_scale=False, name="embedding_bn")(x, **stats)


iresnet18 = partial(IResNet, (2, 2, 2, 2))
iresnet34 = partial(IResNet, (3, 4, 6, 3))
iresnet50 = partial(IResNet, (3, 4, 14, 3))
iresnet100 = partial(IResNet, (3, 13, 30, 3))
iresnet200 = partial(IResNet, (6, 26, 60, 6))
# Not from the literature: small enough to train on a laptop's CPU in minutes.
iresnet_nano = partial(IResNet, (1, 1, 1, 1), (16, 32, 64, 128))
