"""Fused vectors of which a discriminator cannot tell whether they are of source or target."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.alignment import Gradual, both_sides, check_least
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("dann")
class DANN(Gradual):
    """A domain discriminator, whose gradient is reversed (Ganin et al., JMLR 2016).

    Two hidden layers learn to tell fused vectors of the source from those of the target; what lies
    below gets the gradient of their loss times `-weight (2 / (1 + exp(-sharpness p)) - 1)`, with p
    the share of the run that is done.  The loss is the mean over the rows of each side, and then of
    both sides.

    weight: of the reversed gradient at the end of the run
    sharpness: how soon it comes near that; 10 in the paper
    hidden: width of the discriminator, by default that of the fused vector
    """

    needs = ("unlabelled", "fused")

    def __init__(
        self, weight: float = 1.0, sharpness: float = 10.0, hidden: int | None = None
    ) -> None:
        super().__init__()
        check_least("the weight of dann", weight)
        check_least("the sharpness of dann", sharpness)
        check_least("the hidden width of dann", 1 if hidden is None else hidden, 1)
        self.weight, self.sharpness, self.hidden = weight, sharpness, hidden

    def build(self, model: TransferModel) -> None:
        self.module = discriminator(model.fusion.width, self.hidden or model.fusion.width)

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert self.module is not None
        source, here, target, there = both_sides(batch, outputs)
        factor = self.weight * ramp(self.progress, self.sharpness)
        losses = [
            domain_losses(self.module, reverse(rows, factor), real, label)
            for rows, real, label in ((source, here, 1.0), (target, there, 0.0))
        ]
        return loss + mean_of_sides(losses, batch)


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `-factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.factor * gradient, None


def reverse(x: Tensor, factor: float) -> Tensor:
    found: Tensor = Reverse.apply(x, factor)
    return found


def ramp(progress: float, sharpness: float) -> float:
    """From 0 towards 1 as a run goes on."""
    return 2 / (1 + math.exp(-sharpness * progress)) - 1


def discriminator(width: int, hidden: int) -> nn.Module:
    """(B, width) -> (B, 1), above 0 for the source; no drop-out, which processes draw apart."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
    )


def domain_losses(judge: nn.Module, rows: Tensor, real: Tensor, label: float) -> Tensor:
    """The loss (B,) of a discriminator on rows of one side, 0 for those that are not real."""
    logits: Tensor = judge(rows).squeeze(1)
    losses = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, label), reduction="none"
    )
    return torch.where(real, losses, 0)


def mean_of_sides(losses: list[Tensor], batch: Batch) -> Tensor:
    """Losses of source and target rows -> the mean of both means, over the whole step."""
    assert batch.real is not None
    assert batch.unlabelled is not None
    assert batch.unlabelled.real is not None
    return 0.5 * (losses[0].sum() / batch.real + losses[1].sum() / batch.unlabelled.real)
