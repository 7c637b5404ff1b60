"""One transformer over the tokens of all modalities."""

from __future__ import annotations

from torch import nn

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.tokens import TokenFusion, join, repeated, small
from mmtransfer.registry import register_fusion


@register_fusion("transformer")
class TransformerFusion(TokenFusion):
    """Self-attention over all tokens, read off a class token (as VisualBERT, Li et al., 2019)."""

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "mask",
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__(widths, width, dropout, missing, layers, heads)
        self.token = small(1, width)
        self.blocks = nn.ModuleList(self.block() for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        embedded = list(self.embed(features).values())
        x = join([repeated(self.token, embedded[0].mask.shape[0]), *embedded])  # (B, 1 + T, width)
        for block in self.blocks[:-1]:
            x = Features(block(x.tokens, x), x.mask)
        return Fused(self.norm(self.blocks[-1](x.tokens[:, :1], x)[:, 0]))
