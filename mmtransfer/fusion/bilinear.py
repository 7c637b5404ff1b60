"""Bilinear pooling by low-rank factors: products of the projected modalities."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion
from mmtransfer.registry import register_fusion


@register_fusion("bilinear")
class BilinearFusion(PooledFusion):
    """Element-wise product of projections, MLB (Kim, ICLR 2017) or MFB (Yu, ICCV 2017).

    The product is over all modalities; an absent one starts as ones, which change nothing.

    factors: products that are summed into each feature, followed by a signed root and the row's
        norm (MFB); with 1, products of tanh (MLB)
    """

    neutral = 1.0

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        factors: int = 1,
    ) -> None:
        if factors < 1:
            raise ValueError(f"bilinear fusion needs at least 1 factor, found {factors}")
        super().__init__(widths, width, dropout, missing, inner=width * factors)
        self.factors = factors
        self.join = nn.Linear(width, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, present = self.project(features)  # (B, M, width * factors), (B, M)
        if self.factors == 1:
            joined = torch.where(present.unsqueeze(-1), vectors.tanh(), vectors).prod(1)
        else:
            products = self.drop(vectors.prod(1)).unflatten(1, (self.width, self.factors)).sum(-1)
            # The root's slope at 0 is infinite: a little is added under it.
            root = products.sign() * ((products.abs() + 1e-6).sqrt() - 1e-3)
            joined = F.normalize(root, dim=-1) * self.width**0.5
        return Fused(self.join(self.drop(joined)))
