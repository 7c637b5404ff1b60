"""Feature-wise linear modulation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion
from mmtransfer.registry import register_fusion


@register_fusion("film")
class FilmFusion(PooledFusion):
    """Each modality is scaled and shifted by what the others say (FiLM, Perez et al., AAAI 2018).

    The paper has one modality that conditions and one that is conditioned; here each is
    conditioned by all others, and the results are joined as in `concat`.
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        others = len(self.widths) - 1
        self.conditions = nn.ModuleDict(
            {n: nn.Linear(others * width, 2 * width) for n in self.widths if others}
        )
        self.join = nn.Linear(len(self.widths) * width, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        vectors, _ = self.project(features)  # (B, M, width)
        h = F.gelu(vectors)
        modulated = []
        for k, name in enumerate(self.modalities):
            x = h[:, k]
            if name in self.conditions:
                others = torch.cat([h[:, :k], h[:, k + 1 :]], 1).flatten(1)  # (B, (M - 1) * width)
                scale, shift = self.conditions[name](others).chunk(2, -1)
                x = F.gelu((1 + scale) * x + shift)
            modulated.append(x)
        return Fused(F.gelu(self.join(self.drop(torch.cat(modulated, -1)))))
