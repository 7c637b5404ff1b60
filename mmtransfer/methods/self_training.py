"""What the model is sure of on unlabelled rows becomes their label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.alignment import Gradual, check_least
from mmtransfer.methods.base import Look
from mmtransfer.methods.unimodal import over_processes
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

KEPT = 0.99  # of the shares of the classes, from one step to the next
LEAST = 1e-8


@register_method("self_training")
class SelfTraining(Gradual):
    """Adds the loss of unlabelled rows by their pseudo-labels (Lee, ICML-W 2013).

    A row whose most probable class has at least the probability `threshold` gets it as its label;
    the sum of the losses is divided by all unlabelled rows (as in FixMatch, Sohn et al., NeurIPS
    2020, but without a second, stronger augmentation).  The weight rises linearly from 0.

    With `balanced` each class has a threshold of its own, `threshold b / (2 - b)`, where b compares
    how many rows get this label with how many get the most frequent one (FlexMatch, Zhang et al.,
    NeurIPS 2021): classes that the model is slow to see are accepted at less, those it never
    saw at any.  The paper counts the last label of each row, here it is an average over steps.

    weight: next to the loss of the tasks
    threshold: probability in (0, 1]
    ramp: share of the run in which the weight rises, 0 for at once
    balanced: whether classes have thresholds of their own
    """

    needs = ("unlabelled",)

    def __init__(
        self,
        weight: float = 1.0,
        threshold: float = 0.9,
        ramp: float = 0.4,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        check_least("the weight of self_training", weight)
        if not 0 < threshold <= 1:
            raise ValueError(
                f"the threshold of self_training must lie in (0, 1], found {threshold}"
            )
        if not 0 <= ramp <= 1:
            raise ValueError(f"the ramp of self_training must lie in [0, 1], found {ramp}")
        self.weight, self.threshold, self.ramp, self.balanced = weight, threshold, ramp, balanced
        self.shares: dict[str, Tensor] = {}  # by task (C,): of the rows, per label they get
        self._counted: dict[str, Tensor] = {}  # the same, summed over micro-batches
        self._parts = 0

    def begin(self, model: TransferModel, look: Look) -> None:
        super().begin(model, look)
        self.shares = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"shares": {n: s.cpu() for n, s in self.shares.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.shares, self._counted, self._parts = dict(state["shares"]), {}, 0

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert batch.unlabelled is not None
        assert batch.unlabelled.real is not None
        assert outputs.unlabelled is not None
        real = batch.unlabelled.index >= 0
        self._parts += 1
        strength = self.weight * (min(1.0, self.progress / self.ramp) if self.ramp else 1.0)
        for name, task in model.tasks.items():
            logits = outputs.unlabelled.logits[name].float()
            sure, labels = logits.detach().softmax(1).max(1)
            if self.balanced:
                got = (
                    F.one_hot(labels, logits.shape[1]) * (real & (sure >= self.threshold))[:, None]
                )
                share = got.sum(0) / batch.unlabelled.real
                self._counted[name] = share + self._counted.get(name, 0)
            accepted = real & (sure >= self._thresholds(name, logits)[labels])
            losses = torch.where(accepted, F.cross_entropy(logits, labels, reduction="none"), 0)
            loss = loss + strength * task.weight * losses.sum() / batch.unlabelled.real
        return loss

    def _thresholds(self, name: str, logits: Tensor) -> Tensor:
        """(C,) for each label."""
        if name not in self.shares:
            return torch.full_like(logits[0], self.threshold)
        return self.threshold * ease(self.shares[name].to(logits.device))

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        for name, counted in self._counted.items():
            now = over_processes(counted) / (self._parts * PartialState().num_processes)
            before = self.shares.get(name)
            self.shares[name] = (
                now if before is None else KEPT * before.to(now.device) + (1 - KEPT) * now
            )
        self._counted, self._parts = {}, 0


def ease(shares: Tensor) -> Tensor:
    """Shares (C,) of all rows that surely have each label -> (C,) factors of the threshold."""
    # As long as most rows have no sure label, all thresholds are low (eq. 11 of FlexMatch).
    largest = torch.maximum(shares.max(), 1 - shares.sum()).clamp_min(LEAST)
    learned = shares / largest
    return learned / (2 - learned)
