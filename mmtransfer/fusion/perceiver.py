"""A few learned latents that read the tokens of all modalities."""

from __future__ import annotations

from torch import nn

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.tokens import TokenFusion, join, repeated, small
from mmtransfer.registry import register_fusion


@register_fusion("perceiver")
class PerceiverFusion(TokenFusion):
    """Latents attend to all tokens and to themselves (Perceiver, Jaegle et al., ICML 2021).

    The cost grows with latents times tokens, not with the square of the tokens.

    latents: how many
    layers: each reads the tokens, with weights of its own, and then itself
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "mask",
        layers: int = 2,
        heads: int = 4,
        latents: int = 8,
    ) -> None:
        super().__init__(widths, width, dropout, missing, layers, heads)
        if latents < 1:
            raise ValueError(f"there must be at least 1 latent, found {latents}")
        self.latents = latents
        self.start = small(latents, width)
        self.reading = nn.ModuleList(self.block() for _ in range(layers))
        self.thinking = nn.ModuleList(self.block() for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> vector (B, width)."""
        tokens = join(list(self.embed(features).values()))  # (B, T, width)
        x = repeated(self.start, tokens.mask.shape[0])
        for read, think in zip(self.reading, self.thinking, strict=True):
            # Their own keys are always real, so that a row without any token is no special case.
            x = Features(read(x.tokens, join([x, tokens])), x.mask)
            x = Features(think(x.tokens, x), x.mask)
        return Fused(self.norm(x.tokens).mean(1))
