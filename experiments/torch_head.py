"""A margin head in PyTorch, with all logits at once, as InsightFace's users train it: a peer.

Written from the published description (ArcFace, Deng et al., CVPR 2019), not from its code.

B batch, C classes, D embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ArcFaceHead(nn.Module):
    """Embeddings and labels to the mean loss.

    Args:
      num_classes: C.
      embedding_dim: D.
      scale: s.
      margin: m, in radians.
      autocast: the type of the product (torch.bfloat16); the rest is float32. None: float32, which
        is TF32 where `torch.set_float32_matmul_precision` allows that.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        scale: float = 64.0,
        margin: float = 0.5,
        autocast: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.scale, self.margin, self.autocast = scale, margin, autocast
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim, device=device))
        nn.init.normal_(self.weight, 0.0, 0.01)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[B, D], of any norm, and int64 [B] to the loss."""
        embeddings, weight = F.normalize(embeddings), F.normalize(self.weight)
        enabled = self.autocast is not None
        with torch.autocast(embeddings.device.type, dtype=self.autocast, enabled=enabled):
            cosines = F.linear(embeddings, weight)
        cosines = cosines.float().clamp(-1.0, 1.0)
        rows = torch.arange(labels.shape[0], device=labels.device)
        at_label = cosines[rows, labels]
        sine = torch.sqrt((1.0 - at_label * at_label).clamp(min=1e-12))
        with_margin = at_label * math.cos(self.margin) - sine * math.sin(self.margin)
        # Where θ + m passes π, as InsightFace: the logit goes on falling.
        with_margin = torch.where(
            at_label > math.cos(math.pi - self.margin),
            with_margin,
            at_label - math.sin(math.pi - self.margin) * self.margin,
        )
        # In place, as InsightFace: no more copies of [B, C] than the derivatives need.
        logits = cosines.index_put_((rows, labels), with_margin).mul_(self.scale)
        return F.cross_entropy(logits, labels)
