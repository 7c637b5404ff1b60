"""Weights of the joint and the unimodal losses from how they overfit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from mmtransfer.data.mixing import Mixed
from mmtransfer.features import Batch, Held, Outputs, Row, RowContext, row_number
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.unimodal import over_processes, row_losses, unimodal_losses
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

TINY = 1e-8


@register_method("gradient_blending")
class GradientBlending(Method):
    """Losses weighed by generalisation over squared overfitting (Wang et al., CVPR 2020).

    Part of the training rows, drawn by row number, only pass through the model: their loss stands
    for the true one, the loss of the others for the training loss.  Both are averaged over `every`
    steps, for the joint output and for each unimodal head.  From the first such stretch to the
    latest the true loss has fallen by G and the gap between the two has grown by O; the weights of
    the losses are proportional to `G / O^2`, no less than 0, and add up to 1.  Where no G is above
    0, or a modality had no row, the weights stay.  Until two stretches are over, all are equal.

    The paper measures G and O on copies of the model that train on each loss alone; here it is the
    model itself, and from its beginning, as few rows cannot tell what one stretch changed. What
    methods listed before have added to the loss is weighed with the joint one.

    share: of the training rows that are held out, in (0, 1)
    every: steps of a stretch
    even: share of the weight that is given to all losses alike, lest the joint one, which alone
        trains the fusion, is left without; 0 as in the paper
    """

    needs = ("unimodal", "trained_encoders", "numbered_rows")

    def __init__(self, share: float = 0.1, every: int = 100, even: float = 0.2) -> None:
        if not 0 < share < 1:
            raise ValueError(f"the share of held-out rows must lie in (0, 1), found {share}")
        if every < 1:
            raise ValueError(f"gradient_blending needs at least 1 step a stretch, found {every}")
        if not 0 <= even <= 1:
            raise ValueError(f"the even share of the weight must lie in [0, 1], found {even}")
        self.share, self.every, self.even = share, every, even
        self.steps = 0  # of the present stretch
        self.weights: Tensor | None = None  # (1 + M,), the joint one first
        # (tasks, 2, 2, 1 + M): sums over trained rows, held-out ones; of losses, what rows weigh
        self._sums: Tensor | None = None  # of the stretch
        self._found: Tensor | None = None  # of the step
        self._first: Tensor | None = None  # (2, 1 + M): mean losses of the first stretch

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({"steps": 0})

    def state_dict(self) -> dict[str, Any]:
        tensors = {"weights": self.weights, "sums": self._sums, "first": self._first}
        kept = {name: t.cpu() for name, t in tensors.items() if t is not None}
        return {"steps": self.steps, **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.weights = state["steps"], state.get("weights")
        self._sums, self._first = state.get("sums"), state.get("first")
        self._found = None

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        """Hold rows out of training."""
        name = crc32(b"gradient_blending")
        for index, row in rows:
            if any(isinstance(value, Mixed) for value in row.values()):
                raise ValueError(
                    "held-out rows would be mixed into others: list gradient_blending before "
                    "mixup and cutmix"
                )
            rng = np.random.default_rng((context.seed, row_number(index), name))
            if rng.random() < self.share:
                targets = {k: v for k, v in row.items() if k not in context.modalities}
                row.update({k: Held(v) for k, v in targets.items()})

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        with torch.no_grad():
            sides = (batch.targets, batch.held)
            found = torch.stack([measured(model, batch, outputs, side) for side in sides], 1)
        self._found = found if self._found is None else self._found + found
        losses = unimodal_losses(model, batch, outputs.unimodal)
        losses = torch.cat([loss.unsqueeze(0), losses])  # (1 + M,)
        if self.weights is None:
            self.weights = torch.full_like(losses, 1 / len(losses)).detach()
        self.weights = self.weights.to(losses.device)
        return self.weights @ losses

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        assert self._found is not None
        assert self.weights is not None
        found, self._found = over_processes(self._found), None
        self._sums = found if self._sums is None else self._sums.to(found.device) + found
        self.steps += 1
        if self.steps < self.every:
            return
        tasks = torch.tensor([task.weight for task in model.tasks.values()], device=found.device)
        losses, rows = self._sums.unbind(2)  # (tasks, 2, 1 + M)
        means = torch.einsum("t,tkm->km", tasks, losses / rows)  # NaN where no row says anything
        first = means if self._first is None else self._first.to(found.device)
        self._first = torch.where(torch.isfinite(first).all(), first, means)
        weights = blend(self._first, means, self.even)
        self.weights = torch.where(torch.isfinite(weights).all(), weights, self.weights)
        self._sums, self.steps = None, 0


def measured(
    model: TransferModel, batch: Batch, outputs: Outputs, targets: Mapping[str, Tensor]
) -> Tensor:
    """Sums over the rows of these targets, (tasks, 2, 1 + M): losses, and what the rows weigh."""
    assert outputs.unimodal is not None
    assert batch.present is not None
    counted = torch.cat([torch.ones_like(batch.present[:, :1]), batch.present], 1)  # (B, 1 + M)
    found = []
    for name, task in model.tasks.items():
        if name not in targets:
            found.append(counted.new_zeros(2, counted.shape[1], dtype=torch.float32))
            continue
        logits = torch.cat([outputs.logits[name].unsqueeze(1), outputs.unimodal[name]], 1)
        losses = torch.where(counted, row_losses(task, logits, targets[name]), 0)
        rows = task.loss_weight(targets[name]).unsqueeze(1) * counted
        found.append(torch.stack([losses.sum(0), rows.sum(0)]))
    return torch.stack(found)


def blend(first: Tensor, now: Tensor, even: float = 0.0) -> Tensor:
    """Mean losses (2, K) on trained and held-out rows, of two stretches -> weights (K,).

    NaN where no loss generalises.
    """
    gained = first[1] - now[1]
    overfit = (now[1] - now[0]) - (first[1] - first[0])
    weights = gained.clamp_min(0) / overfit.square().clamp_min(TINY)
    return even / len(weights) + (1 - even) * weights / weights.sum()
