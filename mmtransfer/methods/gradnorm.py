"""Weights of tasks under which their gradients are of like size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.tasks import TaskGradients, last_shared
from mmtransfer.methods.unimodal import over_processes
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("gradnorm")
class GradNorm(Method):
    """Weights of tasks that balance their gradients (GradNorm, Chen et al., ICML 2018).

    G is the length of a task's weighted gradient on what trains of the fusion (which stands for the
    paper's last shared layer), r how far its loss has fallen since its first step compared to the
    mean over tasks.  The weights descend `sum |G - mean(G) * r^alpha|`, the right side constant,
    and are scaled to add up to the number of tasks.  The descent is measured in mean(G), so that
    `lr` does not depend on the size of the losses.  Tasks without labelled rows in a step keep
    their weight, and all do where fewer than two tasks have any.

    alpha: 0 makes the gradients equal, larger values favour the tasks that learn slowly
    lr: of the weights, per step
    """

    needs = ("repeated_backward",)

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        if alpha < 0 or lr < 0:
            raise ValueError(f"gradnorm needs alpha and lr >= 0, found {alpha} and {lr}")
        self.alpha, self.lr = alpha, lr
        self.weights: Tensor | None = None  # (T,)
        self.first: Tensor | None = None  # (T,) losses of the first step, 0 where none was yet
        self._gradients = TaskGradients()
        self._losses: list[Tensor] = []

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        kept = {"weights": self.weights, "first": self.first}
        return {name: t.cpu() for name, t in kept.items() if t is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights, self.first = state.get("weights"), state.get("first")
        self._gradients.forget()
        self._losses = []

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        self._gradients.add(outputs, last_shared(model))
        losses = torch.stack(list(outputs.losses.values()))
        self._losses.append(losses.detach().float())
        if self.weights is None:
            self.weights = torch.ones(len(losses))
            self.first = torch.zeros(len(losses))
        self.weights = self.weights.to(losses.device)
        return loss + ((self.weights - 1) * losses).sum()

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        assert self.weights is not None
        assert self.first is not None
        parts = torch.tensor(float(len(self._losses)), device=self.weights.device)
        sums = torch.cat([torch.stack(self._losses).sum(0), parts.unsqueeze(0)])
        *total, count = over_processes(sums).unbind()
        losses, self._losses = torch.stack(total) / count, []
        lengths = self._gradients.take().float().norm(dim=1)
        first = self.first.to(losses.device)
        self.first = torch.where(first > 0, first, losses)
        self.weights = balanced(self.weights, lengths, losses, self.first, self.alpha, self.lr)


def balanced(
    weights: Tensor, lengths: Tensor, losses: Tensor, first: Tensor, alpha: float, lr: float
) -> Tensor:
    """The next weights (T,), given lengths of unweighted gradients, and losses now and at first."""
    known = (losses > 0) & (lengths > 0)
    if int(known.sum()) < 2:
        return weights
    found, sizes = weights[known], lengths[known]
    norms = found * sizes  # G
    progress = losses[known] / first[known]
    rates = progress / progress.mean()  # r
    away = torch.sign(norms - norms.mean() * rates**alpha)
    moved = found - lr * away * sizes / norms.mean()
    moved = moved.clamp_min(1e-3)  # no task is ever left out, or pushed away from its target
    moved = moved * found.sum() / moved.sum()
    return weights.masked_scatter(known, moved)
