"""Attention bottlenecks: modalities meet in a few shared tokens only."""

from __future__ import annotations

import torch
from torch import nn

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import voting
from mmtransfer.fusion.tokens import TokenFusion, join, repeated, small
from mmtransfer.registry import register_fusion


@register_fusion("bottleneck")
class BottleneckFusion(TokenFusion):
    """Multimodal bottleneck transformer (MBT, Nagrani et al., NeurIPS 2021).

    Each modality has blocks of its own over its tokens, a class token and the bottleneck tokens;
    after each layer the bottlenecks are averaged over the modalities present.  The class tokens of
    the modalities present are averaged at the end.

    bottlenecks: shared tokens
    layers: at least 2, since what enters a bottleneck is read in the next layer
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "mask",
        layers: int = 2,
        heads: int = 4,
        bottlenecks: int = 4,
    ) -> None:
        super().__init__(widths, width, dropout, missing, layers, heads)
        if layers < 2:
            raise ValueError(
                f"bottlenecks are read in the next layer: layers must be 2, or more, found {layers}"
            )
        if bottlenecks < 1:
            raise ValueError(f"there must be at least 1 bottleneck, found {bottlenecks}")
        self.bottlenecks = bottlenecks
        self.shared = small(bottlenecks, width)
        self.tokens = nn.ParameterDict({name: small(1, width) for name in self.widths})
        self.blocks = nn.ModuleDict(
            {name: nn.ModuleList(self.block() for _ in range(layers)) for name in self.widths}
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        streams = self.embed(features)
        present = torch.stack([x.present for x in streams.values()], 1)  # (B, M)
        rows = present.shape[0]
        share = voting(present).to(self.shared.dtype)
        share = (share / share.sum(1, keepdim=True)).unsqueeze(-1)  # (B, M, 1)
        streams = {n: join([repeated(self.tokens[n], rows), x]) for n, x in streams.items()}
        shared = repeated(self.shared, rows)
        for layer in range(self.layers):
            last, met = layer == self.layers - 1, []
            for name, x in streams.items():
                both = join([x, shared])
                asking = both.tokens[:, :1] if last else both.tokens
                after = self.blocks[name][layer](asking, both)  # type: ignore[index]
                t = x.mask.shape[1]
                streams[name] = Features(after[:, :t], x.mask[:, : after.shape[1]])
                met.append(after[:, t:])
            if not last:
                each = torch.stack(met, 1)  # (B, M, bottlenecks, width)
                shared = Features((share.unsqueeze(-1) * each).sum(1), shared.mask)
        ends = torch.stack([x.tokens[:, 0] for x in streams.values()], 1)  # (B, M, width)
        return Fused(self.norm((share * ends).sum(1)))
