"""Two pictures that become one when they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image


class PartnerError(ValueError):
    """The second picture of a mixture cannot be read; `row` is the number of its own row."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Mixed:
    """In place of the raw picture of a row: that picture, one of another row, and their shares.

    Each is decoded and augmented by itself; the second takes the size of the first.

    share: of the first picture, in [0, 1]
    partner: number of the row that the second picture is from
    box: where the second covers the first, (left, top, right, bottom) as shares of width and
        height; None blends them everywhere
    """

    first: Any
    second: Any
    share: float
    partner: int
    box: tuple[float, float, float, float] | None = None

    def blend(self, first: Image.Image, second: Image.Image) -> Image.Image:
        """One picture out of both, decoded and in one mode."""
        second = second.resize(first.size, Image.Resampling.BILINEAR)
        if self.box is None:
            return Image.blend(second, first, self.share)
        w, h = first.size
        left, top, right, bottom = self.box
        pixels = round(left * w), round(top * h), round(right * w), round(bottom * h)
        mixed = first.copy()
        mixed.paste(second.crop(pixels), pixels)
        return mixed
