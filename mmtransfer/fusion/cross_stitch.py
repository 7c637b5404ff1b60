"""A stream per task; after each layer they are mixed by learned weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import PooledFusion
from mmtransfer.registry import register_fusion


@register_fusion("cross_stitch")
class CrossStitchFusion(PooledFusion):
    """A stream per task, mixed after each layer (cross-stitch, Misra et al., CVPR 2016).

    Heads take their own streams, in the order in which they are made; `vector` is their mean.

    streams: at least as many as the model has tasks
    layers: of each stream; what enters the next one is a weighted sum of all streams
    stay: weight of a stream in its own input at the beginning; the others share the rest

    Raises `ValueError` when there are more heads than streams.
    """

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        streams: int = 2,
        layers: int = 2,
        stay: float = 0.9,
    ) -> None:
        super().__init__(widths, width, dropout, missing)
        if streams < 2 or layers < 1:
            raise ValueError(
                f"cross_stitch needs at least 2 streams and 1 layer, found {streams} and {layers}"
            )
        if not 0 <= stay <= 1:
            raise ValueError(f"stay must lie in [0, 1], found {stay}")
        self.streams, self.layers, self.stay = streams, layers, stay
        sizes = [len(self.widths) * width] + [width] * (layers - 1)
        self.dense = nn.ModuleList(
            nn.ModuleList(nn.Linear(size, width) for _ in range(streams)) for size in sizes
        )
        own = torch.eye(streams)
        start = stay * own + (1 - stay) / (streams - 1) * (1 - own)
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in sizes)
        self._heads = 0

    def forward(self, features: dict[str, Features]) -> Fused:
        """tokens (B, T, D) per modality -> the mean of the streams, and parts (B, S, width)."""
        vectors, _ = self.project(features)  # (B, M, width)
        x = vectors.flatten(1)
        streams = [x] * self.streams
        for layers, stitch in zip(self.dense, self.stitches, strict=True):
            assert isinstance(layers, nn.ModuleList)
            pairs = zip(layers, streams, strict=True)
            made = torch.stack([F.gelu(layer(stream)) for layer, stream in pairs], 1)
            streams = list(torch.einsum("st,btd->bsd", stitch, made).unbind(1))
        parts = torch.stack(streams, 1)
        return Fused(parts.mean(1), None, parts)

    def head(self, build: Callable[[int], nn.Module]) -> nn.Module:
        if self._heads == self.streams:
            raise ValueError(
                f"cross_stitch has {self.streams} streams and the model more tasks: set streams "
                "to their number"
            )
        self._heads += 1
        return StreamHead(build(self.width), self._heads - 1)

    def decide(self, head: nn.Module, fused: Fused) -> Tensor:
        logits: Tensor = head(fused.parts)
        return logits


class StreamHead(nn.Module):
    """A head on one of the streams (B, S, width)."""

    def __init__(self, head: nn.Module, stream: int) -> None:
        super().__init__()
        self.head, self.stream = head, stream

    def forward(self, parts: Tensor) -> Tensor:
        logits: Tensor = self.head(parts[:, self.stream])
        return logits
