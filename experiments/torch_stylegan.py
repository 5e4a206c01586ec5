"""A StyleGAN2 and its training step in PyTorch: a peer to compare with.

Written from the published descriptions (Karras et al., CVPR 2020 and NeurIPS 2020), not from their
code, with what PyTorch itself has and no kernel of its own: up-convolutions are a transposed
convolution and a blur, as there, FIR filters are depthwise convolutions.

B batch, Z latent, W style, C channels, R resolution, L layers with a style. Images and maps are
[B, C, R, R].
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def activate(x: torch.Tensor) -> torch.Tensor:
    """The leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


@functools.cache
def _fir_kernel(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return (torch.outer(taps, taps) / 64).to(device, dtype)


def fir(x: torch.Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int]) -> torch.Tensor:
    """Zeros between pixels and outside, the filter [1, 3, 3, 1] both ways, every down-th pixel."""
    channels = x.shape[1]
    if up > 1:
        batch, _, height, width = x.shape
        x = x.reshape(batch, channels, height, 1, width, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(batch, channels, height * up, width * up)
    kernel = up**2 * _fir_kernel(x.device, x.dtype).expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(x, padding * 2), kernel, stride=down, groups=channels)


class Dense(nn.Module):
    """A fully connected layer with an equalised learning rate, maybe a lower one."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / multiplier))
        self.multiplier, self.gain = multiplier, multiplier / math.sqrt(inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.multiplier)


class Conv(nn.Module):
    """A convolution with an equalised learning rate; halves the sides after a blur where asked."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, bias: bool = True, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain, self.size, self.down = 1 / math.sqrt(inputs * size**2), size, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight * self.gain).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if not self.down:
            return F.conv2d(x, weight, bias, padding=self.size // 2)
        if self.size == 1:
            return F.conv2d(fir(x, down=2, padding=(1, 1)), weight, bias)
        return F.conv2d(fir(x, padding=(2, 2)), weight, bias, stride=2)


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, demodulation, noise, bias, activation; doubles the sides if up."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: bool) -> None:
        super().__init__()
        self.style = Dense(style_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.up = up

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        style = self.style(w)
        power = style.square() @ weight.square().sum((2, 3)).T
        demodulation = (power + 1e-8).rsqrt()
        x = x * style.to(x.dtype)[:, :, None, None]
        if self.up:
            kernel = weight.flip(2, 3).transpose(0, 1).to(x.dtype)
            x = F.conv_transpose2d(x, kernel, stride=2)
            x = 4 * fir(x, padding=(1, 1))
        else:
            x = F.conv2d(x, weight.to(x.dtype), padding=1)
        x = x * demodulation.to(x.dtype)[:, :, None, None]
        noise = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device)
        x = x + (noise * self.noise_strength).to(x.dtype)
        return activate(x + self.bias.to(x.dtype)[None, :, None, None])


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to three channels, without demodulation; float32."""

    def __init__(self, inputs: int, style_dim: int) -> None:
        super().__init__()
        self.style = Dense(style_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        style = self.style(w) / math.sqrt(self.weight.shape[1])
        x = x * style.to(x.dtype)[:, :, None, None]
        return F.conv2d(x, self.weight.to(x.dtype)).float() + self.bias[None, :, None, None]


def channels_of(resolution: int, base: int, maximum: int) -> list[int]:
    """Channels of the blocks of sides 4, 8, … up to the images'."""
    return [max(min(base >> n, maximum), 1) for n in range(2, resolution.bit_length())]


class Generator(nn.Module):
    """Latents to images with skip output; `mapping` and `synthesis` are its halves.

    Arguments as of ida_jax's `GeneratorNetwork`; styles and images are float32.
    """

    def __init__(
        self,
        resolution: int,
        latent_dim: int = 512,
        style_dim: int = 512,
        mapping_layers: int = 8,
        channel_base: int = 16384,
        channel_max: int = 512,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        widths = [latent_dim] + [style_dim] * mapping_layers
        self.dense = nn.ModuleList(
            Dense(inputs, style_dim, multiplier=0.01) for inputs in widths[:-1]
        )
        channels = channels_of(resolution, channel_base, channel_max)
        self.constant = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.convs, self.to_rgb = nn.ModuleList(), nn.ModuleList()
        for n, width in enumerate(channels):
            if n:
                self.convs.append(StyledConv(channels[n - 1], width, style_dim, up=True))
            self.convs.append(StyledConv(width, width, style_dim, up=False))
            self.to_rgb.append(ToRGB(width, style_dim))
        self.layers = len(self.convs) + 1

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        """[B, Z] to styles [B, W]."""
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for dense in self.dense:
            x = activate(dense(x))
        return x

    def synthesis(self, w: torch.Tensor) -> torch.Tensor:
        """Styles of the layers [B, L, W] to float32 [B, 3, R, R]."""
        x = self.constant.to(self.dtype).expand(w.shape[0], -1, -1, -1)
        x = self.convs[0](x, w[:, 0])
        image = self.to_rgb[0](x, w[:, 1])
        for n, to_rgb in enumerate(self.to_rgb[1:]):
            x = self.convs[2 * n + 1](x, w[:, 2 * n + 1])
            x = self.convs[2 * n + 2](x, w[:, 2 * n + 2])
            image = fir(image, up=2, padding=(2, 1)) + to_rgb(x, w[:, 2 * n + 3])
        return image


class DiscriminatorBlock(nn.Module):
    """Two convolutions beside a 1×1 skip, both halving the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = Conv(inputs, inputs, 3)
        self.conv1 = Conv(inputs, outputs, 3, down=True)
        self.skip = Conv(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = activate(self.conv1(activate(self.conv0(x))))
        return (y + self.skip(x)) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """Images [B, 3, R, R] to float32 logits [B]; arguments as the generator's."""

    def __init__(
        self,
        resolution: int,
        channel_base: int = 16384,
        channel_max: int = 512,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        widths = channels_of(resolution, channel_base, channel_max)[::-1]
        self.from_rgb = Conv(3, widths[0], 1)
        self.blocks = nn.ModuleList(DiscriminatorBlock(a, b) for a, b in itertools.pairwise(widths))
        last = widths[-1]
        self.conv = Conv(last + 1, last, 3)
        self.dense = Dense(last * 16, last)
        self.out = Dense(last, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = activate(self.from_rgb(images.to(self.dtype)))
        for block in self.blocks:
            x = block(x)
        group = math.gcd(x.shape[0], 4)
        groups = x.float().reshape(-1, group, *x.shape[1:])
        deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        deviation = deviation.repeat_interleave(group).to(x.dtype)[:, None, None, None]
        x = torch.cat([x, deviation.expand(-1, 1, *x.shape[2:])], 1)
        x = activate(self.conv(x)).flatten(1).float()
        return self.out(activate(self.dense(x)))[:, 0]


class Training:
    """What StyleGAN2's users train: both networks, their optimisers, the moving average.

    Args:
      sizes: the generator's arguments but the type.
      config: batch_size, learning_rate, r1_weight, r1_every, path_weight, path_every, style_mixing
        and ema_images, as in the section gan of ida_jax's configs.
      dtype: of the maps.
      device: where.
      compile_mode: `torch.compile`'s, for the two phases without second derivatives, which it does
        not do; "none" for none.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        config: Any,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        compile_mode: str = "none",
    ) -> None:
        self.config, self.device, self.seen = config, device, 0
        self.latent_dim = sizes["latent_dim"]
        self.path_mean = torch.zeros((), device=device)
        self.generator = Generator(**sizes, dtype=dtype).to(device)
        shared = {key: sizes[key] for key in ("resolution", "channel_base", "channel_max")}
        self.discriminator = Discriminator(**shared, dtype=dtype).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {
            self.generator: _adam(self.generator, config.learning_rate, config.path_every),
            self.discriminator: _adam(self.discriminator, config.learning_rate, config.r1_every),
        }
        plain = self.generator.mapping, self.generator.synthesis, self.discriminator
        self.mapping, self.synthesis, self.judge = (
            f if compile_mode == "none" else torch.compile(f, mode=compile_mode) for f in plain
        )

    def step(self, number: int, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step with what is due of the regularisation.

        Args:
          number: of the step, from 0.
          images: uint8 [B, R, R, 3].

        Returns:
          Losses, scalars on the device.
        """
        reals = images.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
        losses = {"generator_loss": self._update(self.generator, self._generator_loss)}
        if self.config.path_weight and number % self.config.path_every == 0:
            losses["path_penalty"] = self._update(self.generator, self._path_penalty)
        losses["discriminator_loss"] = self._update(
            self.discriminator, lambda: self._discriminator_loss(reals)
        )
        if number % self.config.r1_every == 0:
            losses["r1"] = self._update(self.discriminator, lambda: self._r1_penalty(reals))
        self._update_average()
        return losses

    def _update(self, network: nn.Module, loss_of: Callable[[], torch.Tensor]) -> torch.Tensor:
        other = self.discriminator if network is self.generator else self.generator
        network.requires_grad_(True)
        other.requires_grad_(False)
        optimizer = self.optimizers[network]
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _styles(self, mapping: Callable, batch: int) -> torch.Tensor:
        """[B, L, W] of two latents: the second's from a random layer on, or nowhere."""
        layers = self.generator.layers
        z = torch.randn(2, batch, self.latent_dim, device=self.device)
        first, second = (mapping(one)[:, None] for one in z)
        crossover = torch.randint(1, layers, (batch,), device=self.device)
        mixed = torch.rand(batch, device=self.device) < self.config.style_mixing
        crossover = torch.where(mixed, crossover, layers)
        kept = torch.arange(layers, device=self.device)[None] < crossover[:, None]
        return torch.where(kept[:, :, None], first, second)

    def _generator_loss(self) -> torch.Tensor:
        fakes = self.synthesis(self._styles(self.mapping, self.config.batch_size))
        return F.softplus(-self.judge(fakes)).mean()

    def _discriminator_loss(self, reals: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fakes = self.synthesis(self._styles(self.mapping, self.config.batch_size))
        return F.softplus(-self.judge(reals)).mean() + F.softplus(self.judge(fakes)).mean()

    def _path_penalty(self) -> torch.Tensor:
        styles = self._styles(self.generator.mapping, (self.config.batch_size + 1) // 2)
        images = self.generator.synthesis(styles)
        direction = torch.randn_like(images) / math.sqrt(images[0, 0].numel())
        (gradient,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
        lengths = (gradient.square().sum(2).mean(1) + 1e-12).sqrt()
        self.path_mean = self.path_mean.lerp(lengths.detach().mean(), 0.01)
        penalty = (lengths - self.path_mean).square().mean()
        return penalty * self.config.path_weight * self.config.path_every

    def _r1_penalty(self, reals: torch.Tensor) -> torch.Tensor:
        reals = reals.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.discriminator(reals).sum(), reals, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        return penalty * self.config.r1_weight / 2 * self.config.r1_every

    @torch.no_grad()
    def _update_average(self) -> None:
        self.seen += self.config.batch_size
        half_life = min(self.config.ema_images, self.seen * 0.05)
        decay = 0.5 ** (self.config.batch_size / max(half_life, 1e-8))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.generator.parameters()), 1 - decay
        )


def _adam(network: nn.Module, learning_rate: float, every: int) -> torch.optim.Adam:
    """StyleGAN2's, of a network with an extra update every few steps."""
    ratio = every / (every + 1)
    return torch.optim.Adam(
        network.parameters(), lr=learning_rate * ratio, betas=(0.0, 0.99**ratio), eps=1e-8,
        fused=True,
    )  # fmt: skip
