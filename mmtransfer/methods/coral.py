"""Fused vectors of source and target with equal covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.alignment import both_sides, check_least
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("coral")
class Coral(Method):
    """Adds the distance of the covariances of source and target (Sun & Saenko, ECCV-W 2016).

    The sum of the squared differences of all entries, over 4 d^2, for fused vectors of d numbers;
    means may differ.  A statistic of each micro-batch; with fewer than two rows on a side it is 0.

    weight: of the distance, next to the loss of the tasks; the paper's rule is that both are about
        equal at the end
    """

    needs = ("unlabelled", "fused")

    def __init__(self, weight: float = 1.0) -> None:
        check_least("the weight of coral", weight)
        self.weight = weight

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        source, here, target, there = both_sides(batch, outputs)
        difference = covariance(source, here) - covariance(target, there)
        distance = difference.square().sum() / (4 * source.shape[1] ** 2)
        enough = (here.sum() > 1) & (there.sum() > 1)
        return loss + self.weight * torch.where(enough, distance, 0 * distance)


def covariance(rows: Tensor, real: Tensor) -> Tensor:
    """Vectors (n, d), of which some count -> (d, d), over the rows less one."""
    weight = real.to(rows.dtype).unsqueeze(1)
    mean = (weight * rows).sum(0) / weight.sum().clamp_min(1)
    centred = weight * (rows - mean)
    return centred.T @ centred / (weight.sum() - 1).clamp_min(1)
