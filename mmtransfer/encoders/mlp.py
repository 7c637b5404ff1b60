"""Pictures or arrays of one size, flattened, through dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.numbers import (
    check_channels,
    check_count,
    check_finite,
    check_positive,
    check_share,
    check_widths,
)
from mmtransfer.encoders.pixels import SquareCollate
from mmtransfer.features import Features
from mmtransfer.registry import register_encoder


@register_encoder("mlp")
class DenseEncoder(Encoder):
    """Flatten and dense layers, for small pictures or arrays of a fixed shape; no pretraining.

    shape: of the arrays, `[28, 28]` say; without it, values are pictures
    size, channels: side in pixels, and 3 (RGB) or 1 (grey), of pictures
    widths: of the dense layers; the last is that of the features (B, 1, D)
    dropout: after each of them
    mean, deviation: of all numbers in an array, for standardisation
    """

    def __init__(
        self,
        shape: Sequence[int] | None = None,
        size: int = 32,
        channels: int = 3,
        widths: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        mean: float = 0.0,
        deviation: float = 1.0,
    ) -> None:
        super().__init__()
        if shape is not None and not (isinstance(shape, Sequence) and len(shape)):
            raise ValueError(f"shape must list the sides of an array, found {shape!r}")
        for name, value in [("size", size), *(("shape", side) for side in shape or ())]:
            check_count(name, value)
        check_channels(channels)
        check_widths("widths", widths)
        check_share("dropout", dropout)
        check_finite("mean", mean)
        check_positive("deviation", deviation)
        self.shape, self.size, self.channels = shape and list(shape), size, channels
        self.widths, self.dropout = list(widths), dropout
        self.mean, self.deviation = mean, deviation
        if shape:
            self.collate = ArrayCollate(tuple(shape), mean, deviation)
        else:
            self.collate, self.modality = SquareCollate(size, channels), "image"
        inputs = int(np.prod(shape)) if shape else channels * size * size
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
            for before, after in zip([inputs, *self.widths], self.widths, strict=False)
        )
        self.width = self.widths[-1]

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.layers)

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, len(self.layers))

    def forward(self, pixels: Tensor) -> Features:
        """pixels (B, ...) -> tokens (B, 1, width)."""
        return self._run(pixels.flatten(1), 0, len(self.layers))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        return self._run(inputs["pixels"].flatten(1), 0, depth)

    def above(self, depth: int, activations: Features) -> Features:
        return self._run(activations.tokens[:, 0], depth, len(self.layers))

    def _run(self, x: Tensor, start: int, end: int) -> Features:
        for layer in list(self.layers)[start:end]:
            x = layer(x)
        return Features.of(x)


class ArrayCollate:
    """Arrays of one shape to `pixels (B, *shape)`, standardised."""

    def __init__(self, shape: tuple[int, ...], mean: float, deviation: float) -> None:
        self.shape, self.mean, self.deviation = shape, mean, deviation

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        arrays = []
        for value in values:
            array = np.asarray(value, dtype=np.float32)
            if array.shape != self.shape:
                raise ValueError(f"an array has shape {array.shape}, expected {self.shape}")
            arrays.append((array - self.mean) / self.deviation)
        return {"pixels": torch.from_numpy(np.stack(arrays)).float()}
