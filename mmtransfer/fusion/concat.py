"""Concatenation of the projected modalities."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion
from mmtransfer.registry import register_fusion


@register_fusion("concat")
class ConcatFusion(PooledFusion):
    """Projected vectors side by side, then one non-linear layer (Ngiam et al., ICML 2011)."""

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        self.join = nn.Linear(len(self.widths) * width, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, _ = self.project(features)  # (B, M, width)
        return Fused(F.gelu(self.join(self.drop(F.gelu(vectors).flatten(1)))))
