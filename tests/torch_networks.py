"""Peers' networks in PyTorch, built from their published descriptions, with their names.

mbf and vit: InsightFace's arcface_torch. ir_se: the older ArcFace zoo,
TreB1eN/InsightFace_Pytorch.
"""

import torch
from torch import nn


def filled(network):
    """In inference, with weights and statistics that no layer's initial 0 or 1 hides."""
    network.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            uniform = torch.rand(tensor.shape, generator=generator)
            if key.endswith("running_var"):
                tensor.copy_(0.5 + uniform)
            elif key.endswith(("running_mean", "bias")) or "pos_embed" in key or "token" in key:
                tensor.copy_(uniform - 0.5)
            elif key.endswith("weight") and tensor.ndim == 1:
                slope = isinstance(network.get_submodule(key.rpartition(".")[0]), nn.PReLU)
                tensor.copy_(0.1 + 0.4 * uniform if slope else 0.8 + uniform)
            elif tensor.ndim > 1:
                tensor.copy_((uniform - 0.5) * (12 / tensor[0].numel()) ** 0.5)
    return network


class Layers(nn.Module):
    """Modules in a row, under the name "layers"."""

    def __init__(self, *modules):
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x):
        return self.layers(x)


def conv_block(inputs, outputs, kernel, stride=1, padding=0, groups=1, *, activation=True):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return Layers(conv, nn.BatchNorm2d(outputs), *([nn.PReLU(outputs)] if activation else []))


class Bottleneck(Layers):
    def __init__(self, inputs, outputs, inner, *, residual):
        super().__init__(
            conv_block(inputs, inner, 1),
            conv_block(inner, inner, 3, 1 if residual else 2, 1, inner),
            conv_block(inner, outputs, 1, activation=False),
        )
        self.residual = residual

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class MBF(nn.Module):
    def __init__(self, blocks=(1, 4, 6, 2), scale=2, embedding_dim=512, image_size=112):
        super().__init__()
        narrow, wide, side = 64 * scale, 128 * scale, image_size // 16

        def residuals(width, number, inner):
            return Layers(*(Bottleneck(width, width, inner, residual=True) for _ in range(number)))

        grouped = conv_block(narrow, narrow, 3, 1, 1, 64)
        self.layers = nn.ModuleList(
            [
                conv_block(3, narrow, 3, 2, 1),
                grouped if blocks[0] == 1 else residuals(narrow, blocks[0], 128),
                Bottleneck(narrow, narrow, 128, residual=False),
                residuals(narrow, blocks[1], 128),
                Bottleneck(narrow, wide, 256, residual=False),
                residuals(wide, blocks[2], 256),
                Bottleneck(wide, wide, 512, residual=False),
                residuals(wide, blocks[3], 256),
            ]
        )
        self.conv_sep = conv_block(wide, 512, 1)
        self.features = Layers(
            conv_block(512, 512, side, groups=512, activation=False),
            nn.Flatten(),
            nn.Linear(512, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        of_head = width // self.heads
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, of_head).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * of_head**-0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(nn.functional.relu6(self.fc1(x)))


class VitBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    def __init__(
        self, depth=12, width=256, heads=8, patch_size=9, embedding_dim=512, image_size=112
    ):
        super().__init__()
        tokens = (image_size // patch_size) ** 2
        self.patch_embed = PatchEmbed(width, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([VitBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * tokens, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )

    def forward(self, x):
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.feature(self.norm(x).flatten(1))


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x):
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class IrSeBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if inputs == width
            else nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            Gate(width),
        )

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


class IRSE(nn.Module):
    """Without the division by the embedding's norm at its end."""

    def __init__(self, stage_sizes, widths=(64, 128, 256, 512), embedding_dim=512, image_size=112):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        )
        blocks, inputs = [], widths[0]
        for size, width in zip(stage_sizes, widths, strict=True):
            blocks.append(IrSeBlock(inputs, width, 2))
            blocks += [IrSeBlock(width, width, 1) for _ in range(size - 1)]
            inputs = width
        self.body = nn.Sequential(*blocks)
        side = image_size // 2 ** len(widths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(inputs * side * side, embedding_dim),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x):
        return self.output_layer(self.body(self.input_layer(x)))
