"""A mixture of experts on the concatenated modalities."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion
from mmtransfer.registry import register_fusion


@register_fusion("mixture_of_experts")
class MixtureOfExpertsFusion(PooledFusion):
    """Several joining layers; a router weighs them for each row (Jacobs et al., 1991).

    experts: how many
    top: only so many experts with the largest weights count in a row, as if they were all (Shazeer
        et al., ICLR 2017); a single one keeps its weight among all of them, which the router learns
        from (Fedus, Zoph & Shazeer, JMLR 2022)
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        experts: int = 4,
        top: int | None = None,
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        if experts < 1:
            raise ValueError(f"a mixture needs at least 1 expert, found {experts}")
        if top is not None and not 1 <= top <= experts:
            raise ValueError(f"top must lie between 1 and the {experts} experts, found {top}")
        self.experts, self.top = experts, top
        joined = len(self.widths) * width
        self.expert = nn.Linear(joined, experts * width)
        self.router = nn.Linear(joined, experts)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, _ = self.project(features)  # (B, M, width)
        x = self.drop(F.gelu(vectors).flatten(1))
        weights = self.router(x).softmax(-1)  # (B, experts)
        if self.top is not None and self.top < self.experts:
            least = weights.topk(self.top, -1).values[:, -1:]
            weights = weights.masked_fill(weights < least, 0.0)
            if self.top > 1:
                weights = weights / weights.sum(-1, keepdim=True)
        outputs = F.gelu(self.expert(x)).unflatten(1, (self.experts, self.width))
        return Fused(torch.einsum("be,bew->bw", weights, outputs))
