"""Gradients of tasks without the part of each that works against another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.tasks import TaskGradients, shared_parameters
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("pcgrad")
class PCGrad(Method):
    """Conflicting gradients of tasks are projected (PCGrad, Yu et al., NeurIPS 2020).

    On all that trains of encoders and fusion the gradient of a task loses, for each other task in
    random order, its component along that task's gradient where their product is negative; the sum
    of what is left replaces the sum of the gradients.  What other methods have added stays, so that
    this one does not go with weights of the tasks (uncertainty, gradnorm).

    seed: of the order
    """

    needs = ("repeated_backward",)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.steps = 0
        self._gradients = TaskGradients()

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({"steps": 0})

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self._gradients.forget()

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        self._gradients.add(outputs, shared_parameters(model))
        return loss

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        found = self._gradients.take()
        # A seed and a step give the same order in all processes, and after a resume.
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.steps)
        self.steps += 1
        orders = [torch.randperm(len(found), generator=generator).tolist() for _ in found]
        change = projected(found, orders) - found.sum(0)
        shared = shared_parameters(model)
        pieces = change.split([p.numel() for p in shared])
        for parameter, piece in zip(shared, pieces, strict=True):
            if parameter.grad is not None:
                parameter.grad += piece.view(parameter.shape)


def projected(gradients: Tensor, orders: list[list[int]]) -> Tensor:
    """Gradients (T, N), and for each task the order of the others -> the new sum (N,)."""
    total = torch.zeros_like(gradients[0])
    squares = gradients.square().sum(1)
    for task, order in enumerate(orders):
        own = gradients[task].clone()
        for other in order:
            product = own @ gradients[other]
            if other != task and product < 0:
                own -= product / squares[other] * gradients[other]
        total += own
    return total
