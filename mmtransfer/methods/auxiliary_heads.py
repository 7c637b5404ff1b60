"""A loss of its own for each modality, beside that of all together."""

from __future__ import annotations

from torch import Tensor

from mmtransfer.features import Batch, Outputs, Row, RowContext
from mmtransfer.methods.base import Method
from mmtransfer.methods.unimodal import unimodal_losses
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest, register_method


@register_method("auxiliary_heads")
class AuxiliaryHeads(Method):
    """Adds the losses of unimodal heads, through which every encoder learns by itself, too.

    With a weight of 1 it is the uniform baseline of Wei & Hu (MMPareto, ICML 2024).

    weight: one for all modalities or by name, 1 for those left out
    """

    needs = ("unimodal", "trained_encoders")

    def __init__(self, weight: float | dict[str, float] = 1.0) -> None:
        for value in weight.values() if isinstance(weight, dict) else [weight]:
            if not value >= 0:
                raise ValueError(f"the weight of auxiliary_heads must be at least 0, found {value}")
        self.weight = weight

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        for name in self.weight if isinstance(self.weight, dict) else ():
            if name not in context.modalities:
                raise ValueError(f"unknown modality {name!r}.{nearest(name, context.modalities)}")

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        losses = unimodal_losses(model, batch, outputs.unimodal)
        pairs = zip(model.fusion.modalities, losses.unbind(), strict=True)
        return loss + sum(self._weight(name) * value for name, value in pairs)

    def _weight(self, name: str) -> float:
        return self.weight.get(name, 1.0) if isinstance(self.weight, dict) else self.weight
