"""Tensor fusion: all products of features of different modalities, whole or of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion
from mmtransfer.registry import register_fusion

LARGEST = 4096  # entries of the tensor, if its size is left to us


def with_one(vectors: Tensor) -> Tensor:
    """(B, M, d) -> (B, M, d + 1): products with the 1 are those that leave a modality out."""
    return F.pad(vectors, (0, 1), value=1.0)


@register_fusion("tensor")
class TensorFusion(PooledFusion):
    """Outer product of all modalities, each with a 1 (TFN, Zadeh et al., EMNLP 2017).

    size: features d of each modality in the product, which has (d + 1)^M entries; by default as
        many as give at most 4096 entries, and not more than `width`
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        size: int | None = None,
    ) -> None:
        m = max(1, len(widths))
        fitting = max(1, math.floor(LARGEST ** (1 / m) + 1e-9) - 1)
        chosen = min(fitting, width) if size is None else size
        if chosen < 1 <= width:
            raise ValueError(f"the size of tensor fusion must be at least 1, found {size}")
        super().__init__(widths, width, dropout, missing, inner=chosen)
        self.size = size
        self.join = nn.Linear((chosen + 1) ** m, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, _ = self.project(features)
        first, *rest = with_one(F.gelu(vectors)).unbind(1)  # (B, d + 1) each
        product = first
        for x in rest:
            product = (product.unsqueeze(-1) * x.unsqueeze(1)).flatten(1)  # (B, (d + 1)^k)
        return Fused(self.join(self.drop(product)))


@register_fusion("low_rank_tensor")
class LowRankTensorFusion(PooledFusion):
    """Tensor fusion whose weights have low rank, never built (LMF, Liu et al., ACL 2018).

    rank: terms of the decomposition
    size: features d of each modality in the product, by default `width`
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        rank: int = 4,
        size: int | None = None,
    ) -> None:
        if rank < 1:
            raise ValueError(f"the rank of low-rank fusion must be at least 1, found {rank}")
        inner = width if size is None else size
        if inner < 1 <= width:
            raise ValueError(f"the size of low-rank fusion must be at least 1, found {size}")
        super().__init__(widths, width, dropout, missing, inner=inner)
        self.rank, self.size = rank, size
        m = len(self.widths)
        self.factors = nn.Parameter(torch.empty(m, rank, inner + 1, width))
        nn.init.normal_(self.factors, std=(inner + 1) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, _ = self.project(features)
        h = with_one(self.drop(F.gelu(vectors)))  # (B, M, d + 1)
        terms = torch.einsum("bmd,mrdw->mbrw", h, self.factors).prod(0)  # (B, rank, width)
        return Fused(terms.sum(1) + self.bias)
