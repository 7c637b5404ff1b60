"""Modality drop-out: leave out whole modalities of training rows."""

from __future__ import annotations

import numpy as np

from mmtransfer.features import Row, RowContext, draw_key
from mmtransfer.methods.base import Method
from mmtransfer.registry import nearest, register_method


@register_method("modality_dropout")
class ModalityDropout(Method):
    """Each present modality of a training row goes missing with probability `rate`, never the last.

    What is dropped is neither decoded nor encoded (Neverova et al., ModDrop, PAMI 2016).

    rate: one for all modalities or by name
    """

    def __init__(self, rate: float | dict[str, float] = 0.15) -> None:
        for value in rate.values() if isinstance(rate, dict) else [rate]:
            if not 0 <= value < 1:
                raise ValueError(f"the rate of modality_dropout must lie in [0, 1), found {value}")
        self.rate = rate

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        for name in self.rate if isinstance(self.rate, dict) else ():
            if name not in context.modalities:
                raise ValueError(f"unknown modality {name!r}.{nearest(name, context.modalities)}")
        for index, row in rows:
            rng = np.random.default_rng((context.seed, context.epoch, *draw_key(index)))
            draws = dict(zip(context.modalities, rng.random(len(context.modalities)), strict=True))
            present = [name for name in context.modalities if row.get(name) is not None]
            kept = [name for name in present if draws[name] >= self._rate(name)]
            # The modality with the largest draw stays, so that no row is left empty.
            kept = kept or sorted(present, key=draws.__getitem__)[-1:]
            row.update({name: None for name in present if name not in kept})

    def _rate(self, name: str) -> float:
        return self.rate.get(name, 0.0) if isinstance(self.rate, dict) else self.rate
