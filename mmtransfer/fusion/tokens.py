"""What fusions on tokens share: tokens of one width, and an attention block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features
from mmtransfer.fusion.base import Projected


class TokenFusion(Projected):
    """Base of fusions on tokens: standardise, project, add an embedding of the modality.

    heads: of attention; must divide `width`
    layers: blocks, one after the other
    """

    uses_tokens = True

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float,
        missing: str,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        if layers < 1:
            raise ValueError(f"a fusion on tokens needs at least 1 layer, found {layers}")
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width of the fusion, {width}, found {heads}")
        self.layers, self.heads = layers, heads
        self.kinds = nn.ParameterDict({name: small(width) for name in self.widths})

    def embed(self, features: dict[str, Features]) -> dict[str, Features]:
        """The tokens of each modality as (B, T, width), zeros where the mask is False."""
        embedded = {}
        for name in self.modalities:
            tokens, mask = features[name].tokens, features[name].mask
            # where, not a product: padding may hold NaN, which must not reach a gradient either.
            tokens = self.scales[name](torch.where(mask.unsqueeze(-1), tokens, 0))
            x = self.drop(self.projections[name](tokens)) + self.kinds[name]
            x = torch.where(mask.unsqueeze(-1), x, 0)
            if self.missing == "learned":  # as one token
                gone = ~mask.any(1, keepdim=True) & first_of(mask)  # (B, T)
                x = torch.where(gone.unsqueeze(-1), self.stand_in(name, x), x)
                mask = mask | gone
            embedded[name] = Features(x, mask)
        return embedded

    def block(self) -> Block:
        return Block(self.width, self.heads, self.dropout)


def small(*shape: int) -> nn.Parameter:
    """A parameter that starts as in BERT and ViT."""
    return nn.Parameter(torch.randn(shape) * 0.02)


def first_of(mask: Tensor) -> Tensor:
    """(T,) bool: True at the first token."""
    return torch.arange(mask.shape[1], device=mask.device) == 0


def attended(mask: Tensor) -> Tensor:
    """The mask, but all True in rows that have no token: softmax over nothing is NaN."""
    return mask | ~mask.any(1, keepdim=True)


def join(features: list[Features]) -> Features:
    """One sequence out of several."""
    return Features(
        torch.cat([f.tokens for f in features], 1), torch.cat([f.mask for f in features], 1)
    )


def repeated(tokens: Tensor, rows: int) -> Features:
    """Learned tokens (T, D) for each of so many rows."""
    return Features.of(tokens.expand(rows, *tokens.shape))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual (Xiong et al., ICML 2020)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, growth: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        # A bias of the keys would change nothing but its own rounding errors (as in BEiT, 2021).
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, growth * width),
            nn.GELU(),
            nn.Linear(growth * width, width),
            nn.Dropout(dropout),
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Features) -> Tensor:
        """x (B, S, D) attends to the real tokens of the context (B, T, D) -> (B, S, D)."""
        read = self.norm(context.tokens)
        q, k, v = self.query(self.norm(x)), self.key(read), self.value(read)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = attended(context.mask)[:, None, None]  # (B, 1, 1, T)
        found = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(found))
        after: Tensor = x + self.mlp(x)
        return after
