"""Mixup and CutMix: training rows that show two pictures and have both labels, by their shares.

The mixtures are drawn on the rows and made where they are read, so that a loader worker does the
work, every row draws its own share, and each picture is augmented by itself.  (torchvision's
transforms of these names mix whole batches of tensors with one share, and know only one target.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from mmtransfer.data.collate import Stored
from mmtransfer.data.mixing import Mixed
from mmtransfer.features import Held, Row, RowContext, draw_key
from mmtransfer.methods.base import Method
from mmtransfer.registry import nearest, register_method
from mmtransfer.tasks.classification import unlabelled
from mmtransfer.tasks.soft import mix_labels

Box = tuple[float, float, float, float]


class Mixing(Method):
    """What mixup and CutMix share; a subclass says where the second picture is seen.

    A row and its partner, another row of the micro-batch that has a picture, are drawn from seed,
    epoch and row number.  What another method has mixed before or keeps out of training is left
    alone, and so are stored features of a frozen encoder, which hold no picture.

    rate: share of the rows that are mixed
    alpha: of Beta(alpha, alpha), from which the share of the first picture is drawn
    column: of the pictures; None for the only image column
    alone: a mixed row loses its other modalities, which show the first label and nothing of the
        second; if they stay, they give the first label away
    """

    changes = ("image",)

    def __init__(self, rate: float, alpha: float, column: str | None, alone: bool) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"the rate of rows to mix must lie in [0, 1], found {rate}")
        if not alpha > 0:
            raise ValueError(f"alpha must be greater than 0, found {alpha}")
        self.rate, self.alpha, self.column, self.alone = rate, alpha, column, alone

    def second_part(self, share: float, rng: np.random.Generator) -> tuple[float, Box | None]:
        """Given the drawn share of the first picture: its exact share, where the second is seen."""
        raise NotImplementedError

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        column = self._column(context)
        if column is None:
            return
        chosen = [
            (index, row)
            for index, row in rows
            if index >= 0
            and not isinstance(row.get(column), Mixed | Stored | None)
            and not any(isinstance(value, Held) for value in row.values())
        ]
        # As they are now: a partner must not be half of something else.
        whole = {index: dict(row) for index, row in chosen}
        numbers, name = sorted(whole), crc32(type(self).__name__.encode())
        for index, row in chosen if len(numbers) > 1 else ():
            rng = np.random.default_rng((context.seed, context.epoch, *draw_key(index), name))
            if rng.random() >= self.rate:
                continue
            other = rng.integers(len(numbers) - 1)
            partner = numbers[other] if numbers[other] < index else numbers[other + 1]
            share, box = self.second_part(float(rng.beta(self.alpha, self.alpha)), rng)
            row[column] = Mixed(row[column], whole[partner][column], share, partner, box)
            self._mix_rest(row, whole[partner], column, share, context)

    def _mix_rest(
        self, row: Row, partner: Mapping[str, Any], column: str, share: float, context: RowContext
    ) -> None:
        """Drop the other modalities, and mix the targets; unlabelled if either of two is."""
        for name in row:
            if name in context.modalities:
                if self.alone and name != column:
                    row[name] = None
            elif unlabelled(row[name]) or unlabelled(partner[name]):
                row[name] = None
            else:
                row[name] = mix_labels(row[name], partner[name], share)

    def _column(self, context: RowContext) -> str | None:
        images = [name for name in context.modalities if context.kinds.get(name) == "image"]
        if self.column is not None:
            if self.column not in images:
                raise ValueError(
                    f"{self.column!r} is no column of pictures.{nearest(self.column, images)}"
                )
            return self.column
        if len(images) > 1:
            raise ValueError(
                f"there are several columns of pictures, {', '.join(images)}: name one of them "
                "as the `column` to mix"
            )
        return images[0] if images else None


@register_method("mixup")
class MixUp(Mixing):
    """Two pictures shine through each other, with both labels (mixup, Zhang et al., ICLR 2018)."""

    def __init__(
        self,
        rate: float = 0.3,
        alpha: float = 0.2,
        column: str | None = None,
        alone: bool = True,
    ) -> None:
        super().__init__(rate, alpha, column, alone)

    def second_part(self, share: float, rng: np.random.Generator) -> tuple[float, Box | None]:
        return share, None


@register_method("cutmix")
class CutMix(Mixing):
    """A rectangle of one picture covers another, with both labels (CutMix, Yun et al., ICCV 2019).

    Its place is uniform; what lies outside of the picture does not count for the label.
    """

    def __init__(
        self,
        rate: float = 0.3,
        alpha: float = 1.0,
        column: str | None = None,
        alone: bool = True,
    ) -> None:
        super().__init__(rate, alpha, column, alone)

    def second_part(self, share: float, rng: np.random.Generator) -> tuple[float, Box | None]:
        half = (1 - share) ** 0.5 / 2
        centre = rng.random(2)
        left, top = np.clip(centre - half, 0, 1).tolist()
        right, bottom = np.clip(centre + half, 0, 1).tolist()
        return 1 - (right - left) * (bottom - top), (left, top, right, bottom)
