"""The iresnet in PyTorch, with the names of InsightFace's state dicts: a peer to compare with.

Written from the published description (ArcFace, Deng et al., CVPR 2019), not from its code. The
parity tests read its weights into `ida_jax.models.resnet`; the training benchmark runs it as
InsightFace's users do.

B batch, H and W image size, C channels, D embedding. Images and maps are [B, C, H, W].
"""

from functools import partial

import torch
from torch import nn


class Block(nn.Module):
    """BN → 3×3 → BN → PReLU → 3×3 with the stride → BN, plus the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Images to embeddings.

    Args:
      stage_sizes: residual blocks in each of the four stages.
      widths: channels of each stage; the stem has those of the first.
      embedding_dim: D.
      dropout: before the fully connected layer.
      image_size: H and W.
      autocast: the type of the convolutions' computation (torch.bfloat16, torch.float16); the fully
        connected layer and the last BatchNorm stay float32. None: float32 throughout.
    """

    def __init__(
        self,
        stage_sizes: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        *,
        embedding_dim: int = 512,
        dropout: float = 0.0,
        image_size: int = 112,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.autocast = autocast
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        inputs, side = widths[0], image_size
        for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True), start=1):
            blocks = [Block(inputs, width, 2)] + [Block(width, width, 1) for _ in range(size - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs, side = width, (side + 1) // 2
        self.bn2 = nn.BatchNorm2d(inputs)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs * side * side, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)  # stays 1
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W], normalised, to [B, D] in the parameters' type, not normalised."""
        enabled = self.autocast is not None
        with torch.autocast(images.device.type, dtype=self.autocast, enabled=enabled):
            x = self.prelu(self.bn1(self.conv1(images)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            x = self.dropout(torch.flatten(self.bn2(x), 1))
        return self.features(self.fc(x.to(self.fc.weight.dtype)))


iresnet18 = partial(IResNet, (2, 2, 2, 2))
iresnet34 = partial(IResNet, (3, 4, 6, 3))
iresnet50 = partial(IResNet, (3, 4, 14, 3))
iresnet100 = partial(IResNet, (3, 13, 30, 3))
iresnet200 = partial(IResNet, (6, 26, 60, 6))
# As ida_jax's: for tests.
iresnet_nano = partial(IResNet, (1, 1, 1, 1), (16, 32, 64, 128))
