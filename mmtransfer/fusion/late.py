"""Decision fusion: a head per modality, and a rule that joins what they say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion, voting
from mmtransfer.registry import nearest, register_fusion

RULES = ("mean", "weighted", "product", "stacking")


@register_fusion("late")
class LateFusion(PooledFusion):
    """Each task has a head per modality; their logits are joined (Kittler et al., PAMI 1998).

    Absent modalities have no say.

    rule: "mean" of the logits; "weighted" by learned weights of the modalities; "product" of the
        experts' probabilities, which is the sum of the logits (Hinton, 2002); "stacking", a linear
        layer over all logits, zeros where absent (Wolpert, 1992)
    hidden: False makes each head linear in the features
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        rule: str = "mean",
        hidden: bool = True,
    ) -> None:
        super().__init__(widths, width, dropout, "mask")
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}.{nearest(rule, RULES)}")
        self.rule, self.hidden = rule, hidden
        if rule == "weighted":
            self.scores = nn.Parameter(torch.zeros(len(self.widths)))

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> parts (B, M, width), their mean, weights (B, M)."""
        vectors, present = self.project(features)  # (B, M, width), (B, M)
        parts = self.drop(F.gelu(vectors)) if self.hidden else vectors
        counted = voting(present)
        scores = self.scores if self.rule == "weighted" else parts.new_zeros(len(self.widths))
        weights = scores.expand(counted.shape).masked_fill(~counted, float("-inf")).softmax(1)
        return Fused((weights.unsqueeze(-1) * parts).sum(1), weights, parts)

    def head(self, build: Callable[[int], nn.Module]) -> nn.Module:
        return DecisionHead([build(self.width) for _ in self.widths], self.rule, self.width)

    def decide(self, head: nn.Module, fused: Fused) -> Tensor:
        logits: Tensor = head(fused.parts, fused.weights)
        return logits


class DecisionHead(nn.Module):
    """Heads by modality; parts (B, M, width) and weights (B, M) -> logits (B, C)."""

    def __init__(self, heads: list[nn.Module], rule: str, width: int) -> None:
        super().__init__()
        self.heads, self.rule = nn.ModuleList(heads), rule
        if rule == "stacking":
            c, m = heads[0](torch.zeros(1, width)).shape[1], len(heads)
            self.stack = nn.Linear(m * c, c)
            with torch.no_grad():  # begin as the mean
                self.stack.weight.copy_(torch.eye(c).repeat(1, m) / m)
                self.stack.bias.zero_()

    def forward(self, parts: Tensor, weights: Tensor) -> Tensor:
        logits = torch.stack([h(x) for h, x in zip(self.heads, parts.unbind(1), strict=True)], 1)
        counted = (weights > 0).unsqueeze(-1)  # (B, M, 1)
        if self.rule == "stacking":
            joined: Tensor = self.stack(torch.where(counted, logits, 0).flatten(1))
            return joined
        if self.rule == "product":
            return torch.where(counted, logits, 0).sum(1)
        return (weights.unsqueeze(-1) * logits).sum(1)
