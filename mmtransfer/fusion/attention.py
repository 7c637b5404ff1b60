"""Attention over the modalities of each row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtransfer.fusion.elementwise import ElementwiseFusion
from mmtransfer.registry import register_fusion


@register_fusion("attention")
class AttentionFusion(ElementwiseFusion):
    """Weighted sum; weights per row by additive attention (Hori et al., ICCV 2017).

    Each modality's score comes from its own vector, with a scoring layer that all share, so
    modalities never attend across the batch.
    """

    def __init__(self, widths: dict[str, int], width: int, dropout: float = 0.0) -> None:
        super().__init__(widths, width, dropout)
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def reduce(self, h: Tensor, counted: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = self.score(torch.tanh(self.hidden(h))).squeeze(-1)  # (B, M)
        weights = scores.masked_fill(~counted, float("-inf")).softmax(1)
        return (weights.unsqueeze(-1) * h).sum(1), weights
