"""Sum, maximum and learned weighted sum of the projected modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion, voting
from mmtransfer.registry import register_fusion


class ElementwiseFusion(PooledFusion):
    """Base: vectors of one width, reduced over the modalities, then one non-linear layer."""

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "mask",
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        self.join = nn.Linear(width, width)

    def reduce(self, h: Tensor, counted: Tensor) -> tuple[Tensor, Tensor | None]:
        """h (B, M, width), counted (B, M) -> (B, width) and, if any, weights (B, M)."""
        raise NotImplementedError

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, present = self.project(features)  # (B, M, width), (B, M)
        counted = voting(present) if self.missing == "mask" else torch.ones_like(present)
        joined, weights = self.reduce(F.gelu(vectors), counted)
        return Fused(F.gelu(self.join(self.drop(joined))), weights)


@register_fusion("sum")
class SumFusion(ElementwiseFusion):
    """Sum of the projected vectors (additive fusion; Baltrusaitis et al., PAMI 2019)."""

    def reduce(self, h: Tensor, counted: Tensor) -> tuple[Tensor, Tensor | None]:
        return (h * counted.unsqueeze(-1)).sum(1), None


@register_fusion("max")
class MaxFusion(ElementwiseFusion):
    """Largest value of each feature over the modalities (max fusion; Feichtenhofer, CVPR 2016)."""

    def reduce(self, h: Tensor, counted: Tensor) -> tuple[Tensor, Tensor | None]:
        return h.masked_fill(~counted.unsqueeze(-1), float("-inf")).amax(1), None


@register_fusion("weighted")
class WeightedFusion(ElementwiseFusion):
    """One learned weight per modality, a softmax over those present (Peters et al., NAACL 2018).

    The same weights for every row, unlike `attention`.
    """

    def __init__(self, widths: dict[str, int], width: int, dropout: float = 0.0) -> None:
        super().__init__(widths, width, dropout)
        self.scores = nn.Parameter(torch.zeros(len(self.widths)))

    def reduce(self, h: Tensor, counted: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = self.scores.expand_as(counted).masked_fill(~counted, float("-inf"))
        weights = scores.softmax(1)  # (B, M)
        return (weights.unsqueeze(-1) * h).sum(1), weights
