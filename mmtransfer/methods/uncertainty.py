"""Weights of tasks from an uncertainty that each of them learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("uncertainty")
class Uncertainty(Method):
    """Losses of tasks are weighed by learned uncertainty (Kendall et al., CVPR 2018).

    With s the logarithm of a task's variance, its loss L becomes `exp(-s) L + s / 2`, the form for
    classification; for a constant loss the best s is ln(2 L).  A task without labelled rows in a
    step leaves its s alone.  What other methods have added to the loss is not weighed.

    start: s of each task in the beginning, 0 being the plain sum
    """

    def __init__(self, start: float = 0.0) -> None:
        self.start = start

    def build(self, model: TransferModel) -> None:
        self.module = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(float(self.start))) for name in model.tasks}
        )

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert isinstance(self.module, nn.ParameterDict)
        for name, task in model.tasks.items():
            s = self.module[name]
            # This part's share of the step's labelled rows: they add up to the step's number of
            # parts, or to 0 where no row is labelled.
            labelled = task.loss_weight(batch.targets[name]).sum() / batch.counts[name]
            loss = loss + ((-s).exp() - 1) * outputs.losses[name] + labelled * s / 2
        return loss
