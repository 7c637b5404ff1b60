"""Pictures to `pixels (B, C, H, W)`, for encoders that bring no processor of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmtransfer.encoders.decoding import decode_image
from mmtransfer.encoders.numbers import check_channels


class TransformCollate:
    """Pictures through a library's own evaluation transform, which gives (3, H, W) tensors."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        return {"pixels": torch.stack([self.transform(decode_image(value)) for value in values])}


class SquareCollate:
    """The middle square of each picture at `size` pixels, RGB or grey, scaled to [-1, 1]."""

    def __init__(self, size: int, channels: int) -> None:
        check_channels(channels)
        self.size, self.mode = size, "RGB" if channels == 3 else "L"

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        square = (self.size, self.size)
        pictures = [
            ImageOps.fit(decode_image(value).convert(self.mode), square, Image.Resampling.BILINEAR)
            for value in values
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels  # (B, H, W, C)
        return {"pixels": pixels.permute(0, 3, 1, 2).float() / 127.5 - 1}
