"""Pairwise attention from each modality to each other."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.tokens import TokenFusion
from mmtransfer.registry import register_fusion


@register_fusion("cross_attention")
class CrossAttentionFusion(TokenFusion):
    """Multimodal transformer: tokens read each other modality (MulT, Tsai et al., ACL 2019).

    For each target modality a crossmodal stack per source, their results side by side, a block of
    self-attention, the mean over real tokens; then one non-linear layer over all modalities.

    layers: of each crossmodal stack
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        super().__init__(widths, width, dropout, missing, layers, heads)
        names, others = self.modalities, len(self.widths) - 1
        self.cross = nn.ModuleDict(
            {
                target: nn.ModuleList(
                    nn.ModuleList(self.block() for _ in range(layers)) for _ in range(others)
                )
                for target in names
            }
        )
        self.merge = nn.ModuleDict({n: nn.Linear(others * width, width) for n in names if others})
        self.own = nn.ModuleDict({name: self.block() for name in names})
        self.join = nn.Linear(len(names) * width, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        embedded, pooled = self.embed(features), []
        for target, x in embedded.items():
            sources = [f for name, f in embedded.items() if name != target]
            read = []
            for source, stack in zip(sources, self.cross[target], strict=True):  # type: ignore
                tokens = x.tokens  # (B, T, width)
                for block in stack:
                    tokens = block(tokens, source)
                read.append(tokens)
            merged = self.merge[target](torch.cat(read, -1)) if read else x.tokens
            merged = self.own[target](merged, Features(merged, x.mask))
            pooled.append(Features(merged, x.mask).pooled())
        return Fused(F.gelu(self.join(self.drop(torch.cat(pooled, -1)))))
