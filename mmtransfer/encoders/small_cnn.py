"""A small convolutional network for pictures, without pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.numbers import check_channels, check_count, check_widths
from mmtransfer.encoders.pixels import SquareCollate
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

POOLS = ("none", "mean")


@register_encoder("small-cnn")
class SmallCNN(Encoder):
    """Blocks of convolution, batch norm, ReLU and pooling, for pictures; random weights.

    size, channels: side in pixels of the middle square of a picture, and 3 (RGB) or 1 (grey)
    widths: of the blocks; each halves the map, the last is that of the features
    pool: "none" gives the places of the last map as tokens, "mean" their mean
    """

    modality = "image"

    def __init__(
        self,
        size: int = 64,
        channels: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256),
        pool: str = "none",
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}.{nearest(pool, POOLS)}")
        check_count("size", size)
        check_channels(channels)
        check_widths("widths", widths)
        if size < 2 ** len(widths):
            raise ValueError(
                f"{len(widths)} blocks halve a picture so often: size must be at least "
                f"{2 ** len(widths)}, found {size}"
            )
        self.size, self.channels, self.widths, self.pool = size, channels, list(widths), pool
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            )
            for before, after in zip([channels, *self.widths], self.widths, strict=False)
        )
        self.width = self.widths[-1]
        self.collate = SquareCollate(size, channels)

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, len(self.blocks))

    def forward(self, pixels: Tensor) -> Features:
        """pixels (B, channels, size, size) -> tokens (B, T, width)."""
        return self._pooled(self._run(pixels, 0, len(self.blocks)))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        return self._run(inputs["pixels"], 0, depth)

    def above(self, depth: int, activations: Features) -> Features:
        return self._pooled(self._run(activations.as_map(), depth, len(self.blocks)))

    def _run(self, x: Tensor, start: int, end: int) -> Features:
        x = x.contiguous(memory_format=torch.channels_last)
        for block in list(self.blocks)[start:end]:
            x = block(x)
        return Features.of_map(x)

    def _pooled(self, features: Features) -> Features:
        return features.pool() if self.pool == "mean" else features
