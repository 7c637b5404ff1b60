"""The weakest directions of the features are suppressed."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Method
from mmtransfer.methods.start import check_not_negative
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.registry import register_method


@register_method("bss")
class BSS(Method):
    """Batch spectral shrinkage (Chen et al., NeurIPS 2019).

    `weight` times the sum of the squares of the k smallest singular values of the pooled features
    (B, D) of each encoder that trains, against negative transfer.  The rows are those of a
    micro-batch that have the modality, so that accumulation and processes change the values.
    """

    needs = ("features", "trained_encoders")

    def __init__(self, weight: float = 0.001, k: int = 1) -> None:
        check_not_negative("bss", weight=weight)
        if k < 1:
            raise ValueError(f"k of bss must be at least 1, found {k}")
        self.weight, self.k = weight, k

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert outputs.features is not None
        for name, features in outputs.features.items():
            rows = features.present & (batch.index >= 0)
            if is_trainable(model.encoders[name]) and rows.any():
                loss = loss + self.weight * shrinkage(features.pooled()[rows], self.k)
        return loss


def shrinkage(features: Tensor, k: int) -> Tensor:
    """(B, D) -> the sum of the squares of its k smallest singular values."""
    values = torch.linalg.svdvals(features.float())  # largest first
    return values[-k:].square().sum()
