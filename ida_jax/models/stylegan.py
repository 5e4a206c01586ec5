"""StyleGAN2's generator and discriminator, which make the faces of the fake-db (section 3.2).

Sources: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020): modulation,
demodulation, skip output, residual discriminator; and its code's sizes as in "Training Generative
Adversarial Networks with Limited Data" (2020). The paper's own fake-db is StyleGAN's (2019).

Weights are drawn with unit variance and scaled where they are used, by 1/√fan-in: Adam's steps, of
one size whatever the gradient's, then are of one size relative to each layer's weights ("equalised
learning rate"). Activations are leaky ReLU of slope 0.2, times √2.

Modulation scales the activations instead of the weights, so that a convolution has one kernel for
all images and is not grouped.

B batch, R resolution, C channels, Z latent, W style, L styles of an image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ida_jax.ops.convolution import conv, conv_down, conv_up
from ida_jax.ops.resample import blur, downsample, upsample

_MAPPING_RATE = 0.01  # the mapping network's learning rate, of the others'
_GROUP = 4  # images whose deviation the discriminator sees


def resolutions(resolution: int) -> list[int]:
    """4, 8, … R: the sizes of a network's blocks."""
    return [2**power for power in range(2, resolution.bit_length())]


def num_styles(resolution: int) -> int:
    """L: one of each convolution, and one of the last conversion to RGB."""
    return 2 * len(resolutions(resolution))


def draw_noise(key: jax.Array, batch: int, resolution: int) -> list[jax.Array]:
    """N(0, 1) for each convolution of the synthesis: [B, r, r, 1], r = 4, 8, 8, … R, R."""
    sizes = [4] + [size for size in resolutions(resolution)[1:] for _ in range(2)]
    keys = jax.random.split(key, len(sizes))
    return [jax.random.normal(k, (batch, r, r, 1)) for k, r in zip(keys, sizes, strict=True)]


class GeneratorNetwork(nn.Module):
    """Latent → styles (mapping) → image (synthesis).

    Attributes:
      resolution: R, a power of two, 8 or more.
      latent_dim: Z.
      style_dim: W.
      mapping_layers: fully connected layers from z to w.
      channel_base: a block of size r has min(channel_base / r, channel_max) channels.
      channel_max: see there.
      dtype: of the synthesis' activations, float32 or bfloat16. Parameters and images are float32.
      filter_first: up-convolutions filter before they convolve, not behind, and so have zeros
        where StyleGAN2 has the filter's outermost pixel: generators of before that are read so.
    """

    resolution: int
    latent_dim: int = 512
    style_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 16_384
    channel_max: int = 512
    dtype: Any = jnp.float32
    filter_first: bool = False

    def setup(self) -> None:
        self.mapping = _Mapping(self.style_dim, self.mapping_layers)
        self.synthesis = _Synthesis(
            self.resolution, self.channel_base, self.channel_max, self.dtype, self.filter_first
        )

    def map(self, latents: jax.Array) -> jax.Array:
        """Latents [B, Z] → styles float32 [B, W]."""
        return self.mapping(latents)

    def synthesise(self, styles: jax.Array, noise: Sequence[jax.Array]) -> jax.Array:
        """Styles of the layers [B, L, W] and `draw_noise` → float32 [B, R, R, 3], about −1 … 1."""
        return self.synthesis(styles, noise)

    def __call__(self, latents: jax.Array, noise: Sequence[jax.Array]) -> jax.Array:
        """Latents [B, Z] and `draw_noise` → float32 [B, R, R, 3], about −1 … 1."""
        styles = self.map(latents)
        count = num_styles(self.resolution)
        return self.synthesise(jnp.repeat(styles[:, None, :], count, axis=1), noise)


class DiscriminatorNetwork(nn.Module):
    """Image → one logit, by residual blocks.

    Attributes: as `GeneratorNetwork`.
    """

    resolution: int
    channel_base: int = 16_384
    channel_max: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, R, R, 3] → float32 [B], high for real ones.

        An image's logit also depends on its neighbours in the batch, by `group_deviation`.
        """

        def channels(size: int) -> int:
            return _channels(size, self.channel_base, self.channel_max)

        x = images.astype(self.dtype)
        x = _lrelu(_Conv(channels(self.resolution), kernel=1, name="from_rgb")(x))
        for size in reversed(resolutions(self.resolution)[1:]):
            name, out = f"block_{size}", channels(size // 2)
            skip = _Conv(out, kernel=1, bias=False, name=f"{name}_skip")(downsample(x))
            x = _lrelu(_Conv(channels(size), name=f"{name}_conv_0")(x))
            x = _lrelu(_Conv(out, down=True, name=f"{name}_conv_1")(x))
            x = (x + skip) / math.sqrt(2)
        x = jnp.concatenate([x, group_deviation(x)], axis=3)
        x = _lrelu(_Conv(channels(4), name="block_4_conv")(x))
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        x = _lrelu(_Dense(channels(4), name="block_4_fc")(x))
        return _Dense(1, name="output_fc")(x)[:, 0]


def group_deviation(features: jax.Array) -> jax.Array:
    """Standard deviation over neighbouring images, averaged over everything else.

    Progressive GAN's minibatch deviation: a discriminator that sees it recognises a generator that
    makes one image only. Groups are of 4 neighbours in the batch (the largest power of two up to
    that which divides it), so that a group lies on one device where a device has a multiple of 4.

    Args:
      features: [B, H, W, C].

    Returns:
      [B, H, W, 1], of the same type.
    """
    batch, height, width, _ = features.shape
    group = math.gcd(batch, _GROUP)
    x = features.astype(jnp.float32).reshape(batch // group, group, *features.shape[1:])
    deviation = jnp.sqrt(jnp.var(x, axis=1) + 1e-8)
    mean = jnp.mean(deviation, axis=(1, 2, 3))
    spread = jnp.broadcast_to(mean[:, None, None, None, None], (len(mean), group, height, width, 1))
    return spread.reshape(batch, height, width, 1).astype(features.dtype)


class _Mapping(nn.Module):
    width: int
    layers: int

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        x = latents * jax.lax.rsqrt(jnp.mean(latents**2, axis=1, keepdims=True) + 1e-8)
        for number in range(self.layers):
            x = _lrelu(_Dense(self.width, rate=_MAPPING_RATE, name=f"fc_{number}")(x))
        return x


class _Synthesis(nn.Module):
    resolution: int
    channel_base: int
    channel_max: int
    dtype: Any
    filter_first: bool

    @nn.compact
    def __call__(self, styles: jax.Array, noise: Sequence[jax.Array]) -> jax.Array:
        batch, image = styles.shape[0], None
        width = _channels(4, self.channel_base, self.channel_max)
        x = self.param("constant", nn.initializers.normal(1.0), (4, 4, width), jnp.float32)
        x = jnp.broadcast_to(x[None], (batch, *x.shape)).astype(self.dtype)
        layer = 0
        for size in resolutions(self.resolution):
            width = _channels(size, self.channel_base, self.channel_max)
            if size > 4:
                up = _filtered_up if self.filter_first else conv_up
                x = _StyledConv(width, up, name=f"block_{size}_conv_0")(
                    x, styles[:, layer], noise[layer]
                )
                layer += 1
            x = _StyledConv(width, name=f"block_{size}_conv_1")(x, styles[:, layer], noise[layer])
            layer += 1
            # The next block's first convolution has the same style.
            rgb = _ToRgb(name=f"block_{size}_rgb")(x, styles[:, layer]).astype(jnp.float32)
            image = rgb if image is None else upsample(image) + rgb
        return image


class _StyledConv(nn.Module):
    """Modulated and demodulated 3×3 convolution, noise, bias, activation."""

    channels: int
    convolve: Callable[[jax.Array, jax.Array], jax.Array] = conv

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array, noise: jax.Array) -> jax.Array:
        kernel = _kernel(self, (3, 3, x.shape[3], self.channels))
        scale = _Dense(x.shape[3], bias=1.0, name="style")(style)
        x = self.convolve(x * _over_pixels(scale, x.dtype), kernel.astype(x.dtype))
        x = x * _over_pixels(demodulation(kernel, scale), x.dtype)
        strength = self.param("noise_strength", nn.initializers.zeros, (), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return _lrelu(x + (noise * strength).astype(x.dtype) + _over_batch(bias, x.dtype))


class _ToRgb(nn.Module):
    """Modulated 1×1 convolution to three channels, not demodulated."""

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        kernel = _kernel(self, (1, 1, x.shape[3], 3))
        scale = _Dense(x.shape[3], bias=1.0, name="style")(style)
        bias = self.param("bias", nn.initializers.zeros, (3,), jnp.float32)
        x = conv(x * _over_pixels(scale, x.dtype), kernel.astype(x.dtype))
        return x + _over_batch(bias, x.dtype)


def demodulation(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """1 / √(Σ (s·w)² + 1e-8), by which a modulated convolution's outputs are scaled.

    Input channels times s, then w, then this, is the convolution by the weights s·w brought to unit
    norm: without a kernel of its own for each image, which would be a grouped convolution.

    Args:
      kernel: w, float32 [h, w, C, C'].
      scale: s, float32 [B, C].

    Returns:
      float32 [B, C'].
    """
    return jax.lax.rsqrt(scale**2 @ jnp.sum(kernel**2, axis=(0, 1)) + 1e-8)


class _Conv(nn.Module):
    """Equalised convolution; with `down` at half the size, after the filter."""

    channels: int
    kernel: int = 3
    bias: bool = True
    down: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, (self.kernel, self.kernel, x.shape[3], self.channels))
        kernel = kernel.astype(x.dtype)
        x = conv_down(blur(x), kernel) if self.down else conv(x, kernel)
        if not self.bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return x + _over_batch(bias, x.dtype)


class _Dense(nn.Module):
    """Equalised fully connected layer in float32; `rate` is its learning rate, of the others'."""

    width: int
    rate: float = 1.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel", nn.initializers.normal(1 / self.rate), (x.shape[1], self.width), jnp.float32
        )
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.width,), jnp.float32)
        return x @ (kernel * (self.rate / math.sqrt(x.shape[1]))) + self.rate * bias[None, :]


def _kernel(module: nn.Module, shape: tuple[int, int, int, int]) -> jax.Array:
    kernel = module.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
    return kernel / math.sqrt(math.prod(shape[:3]))


def _filtered_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv(upsample(x), kernel)


def _lrelu(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)


def _channels(size: int, base: int, largest: int) -> int:
    return max(min(base // size, largest), 1)


def _over_pixels(per_image: jax.Array, dtype: Any) -> jax.Array:
    return per_image[:, None, None, :].astype(dtype)


def _over_batch(per_channel: jax.Array, dtype: Any) -> jax.Array:
    return per_channel[None, None, None, :].astype(dtype)
