"""Gated multimodal unit."""

from __future__ import annotations

import torch
from torch import nn

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion, voting
from mmtransfer.registry import register_fusion


@register_fusion("gated")
class GatedFusion(PooledFusion):
    """Gated multimodal unit: learned gates weigh tanh vectors (Arevalo et al., ICLR workshop 2017).

    The gates of several modalities are a softmax over those present, per feature, each gate seeing
    all modalities; for two modalities this is the z and 1 - z of the paper.
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        m = len(self.widths)
        self.gate = nn.Linear(m * width, m * width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width), weights (B, M) mean gates."""
        vectors, present = self.project(features)  # (B, M, width), (B, M)
        h = torch.tanh(vectors)
        logits = self.gate(self.drop(h.flatten(1))).unflatten(1, h.shape[1:])  # (B, M, width)
        gates = logits.masked_fill(~voting(present).unsqueeze(-1), float("-inf")).softmax(1)
        return Fused((gates * h).sum(1), gates.mean(-1))
