"""MobileFaceNet: a small recognition network, 112×112 images to 128-d embeddings.

Source: Chen et al., "MobileFaceNets" (CCBR 2018), in the widespread PyTorch variant that has ReLU
and ReLU6 where the article has PReLU. `ida_jax.interop.state_dict` reads that variant's
weights.

A depthwise convolution on a CPU is nine shifted products: XLA's CPU backend runs a grouped
convolution one channel at a time, and the sum is four to five times faster. GPUs and TPUs keep the
convolution. The platform that is compiled for decides (`lax.platform_dependent`), which need not be
the one that compiles.

B batch, H and W image size, C channels, D embedding. Images and maps are [B, H, W, C].
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ida_jax.models.resnet import BatchNorm


class Stage(NamedTuple):
    """A run of inverted residuals; only the first of them has a stride."""

    expansion: int
    width: int
    repeats: int
    stride: int


STAGES = (
    Stage(expansion=2, width=64, repeats=5, stride=2),
    Stage(expansion=4, width=128, repeats=1, stride=2),
    Stage(expansion=2, width=128, repeats=6, stride=1),
    Stage(expansion=4, width=128, repeats=1, stride=2),
    Stage(expansion=2, width=128, repeats=2, stride=1),
)


class MobileFaceNet(nn.Module):
    """Images to embeddings.

    Attributes:
      embedding_dim: D.
      dtype, batch_norm_groups, remat: as in `models.resnet.IResNet`.
    """

    embedding_dim: int = 128
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
          images: float [B, H, W, 3], normalised as for training (RGB).
          mask: bool [B], False for rows that only pad the batch: they enter no statistics.

        Returns:
          float32 [B, D].
        """
        # A 1×1 convolution is a Dense layer, whose weight gradient is one matrix product.
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        options = {"dtype": self.dtype, "batch_norm_groups": self.batch_norm_groups}
        norm = partial(BatchNorm, dtype=self.dtype, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}
        # Only in training, so that an exported network has no trace of it.
        residual = InvertedResidual
        if self.remat and train:
            residual = nn.remat(InvertedResidual, static_argnums=(2,))

        x = nn.Conv(
            64, (3, 3), (2, 2), ((1, 1), (1, 1)), use_bias=False, dtype=self.dtype, name="conv1"
        )(images)
        x = nn.relu6(norm(name="conv1_bn")(x, **stats))
        x = DepthwiseConv(dtype=self.dtype, name="dw_conv_depthwise")(x)
        x = nn.relu(norm(name="dw_conv_bn1")(x, **stats))
        x = dense(64, name="dw_conv_pointwise")(x)
        x = nn.relu(norm(name="dw_conv_bn2")(x, **stats))

        strides = [(s, s.stride if r == 0 else 1) for s in STAGES for r in range(s.repeats)]
        for index, (stage, stride) in enumerate(strides):
            x = residual(stage.expansion, stage.width, stride, **options, name=f"features_{index}")(
                x, train, mask
            )

        x = dense(512, name="conv2")(x)
        x = nn.relu6(norm(name="conv2_bn")(x, **stats))
        # For the uncertainty module; nothing unless the collection is asked for.
        self.sow("intermediates", "feature_map", x)
        x = GlobalDepthwiseConv(dtype=self.dtype, name="gdconv_depthwise")(x)
        norm = partial(BatchNorm, groups=self.batch_norm_groups)
        x = norm(name="gdconv_bn")(x, **stats)
        x = nn.Dense(self.embedding_dim, name="conv3")(x)
        return norm(name="bn")(x, **stats)


class InvertedResidual(nn.Module):
    """1×1 to expansion · C, 3×3 depthwise, 1×1 to the width; plus the input where shapes agree.

    BatchNorm follows each, ReLU6 the first two.
    """

    expansion: int
    width: int
    stride: int
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1

    # By position: what nn.remat may take as static, it knows by its index.
    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, width]."""
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}

        y = dense(self.expansion * x.shape[-1], name="expand")(x)
        y = nn.relu6(norm(name="expand_bn")(y, **stats))
        y = DepthwiseConv(self.stride, self.dtype, name="depthwise")(y)
        y = nn.relu6(norm(name="depthwise_bn")(y, **stats))
        y = dense(self.width, name="project")(y)
        y = norm(name="project_bn")(y, **stats)
        return x + y if x.shape == y.shape else y


class GlobalDepthwiseConv(nn.Module):
    """A depthwise convolution as large as the map: Σ over H and W of x · kernel, in float32."""

    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → float32 [B, C]."""
        shape = (*x.shape[1:3], 1, x.shape[3])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return jnp.sum(x.astype(jnp.float32) * kernel[:, :, 0][None], axis=(1, 2))


class DepthwiseConv(nn.Module):
    """3×3, each channel by itself, padded by 1 on every side, without a bias.

    With a `group_size` of G above 1, groups of G neighbouring channels by themselves.
    """

    stride: int = 1
    dtype: Any = jnp.float32
    group_size: int = 1
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, C]."""
        shape = (3, 3, self.group_size, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _depthwise(x, kernel, self.stride)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _nine_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`_convolution` as the sum of nine shifted products, which vectorises over the channels.

    Nine for each of a group's G channels: those of x are turned within their group, so that each
    output channel has had all of them.
    """
    _, h, w, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(jnp.float32)
    kernel = kernel.astype(jnp.float32)
    members, products = kernel.shape[2], []
    for turn in range(members):
        turned = padded.reshape(*padded.shape[:3], -1, members)
        turned = jnp.roll(turned, -turn, axis=-1).reshape(padded.shape)
        inputs = (np.arange(channels) + turn) % members
        own = kernel[:, :, inputs, np.arange(channels)]
        products += [
            turned[:, i : i + h : stride, j : j + w : stride] * own[None, i : i + 1, j, None]
            for i in range(3)
            for j in range(3)
        ]
    return sum(products[1:], start=products[0]).astype(x.dtype)


# A gradient of its own keeps x and the kernel alone, whichever platform's formulation is taken; and
# the kernel's, on a CPU, is found image by image.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_nine_products, stride=stride),
        default=partial(_convolution, stride=stride),
    )


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=partial(_nine_products_backward, stride=stride),
        default=partial(_convolution_backward, stride=stride),
    )


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _convolution_backward(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
    _, backward = jax.vjp(partial(_convolution, stride=stride), x, kernel)
    return backward(gradient)


def _nine_products_backward(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
    (x_gradient,) = jax.linear_transpose(lambda x: _nine_products(x, kernel, stride), x)(gradient)

    # One image at a time: it stays in the processor's cache for all nine products.
    def add_image(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, gradient = (a[None] for a in image)
        transpose = jax.linear_transpose(lambda k: _nine_products(x, k, stride), total)
        return total + transpose(gradient)[0], None

    total, _ = lax.scan(add_image, jnp.zeros(kernel.shape, jnp.float32), (x, gradient))
    return x_gradient, total.astype(kernel.dtype)
