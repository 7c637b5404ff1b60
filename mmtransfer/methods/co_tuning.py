"""The classifier of the source learns along, towards what target labels mean in source classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.source_head import chosen_modality, head_input, load_source_head
from mmtransfer.methods.start import check_not_negative
from mmtransfer.methods.unimodal import over_processes
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.registry import register_method


@register_method("co_tuning")
class CoTuning(Method):
    """Co-Tuning (You et al., NeurIPS 2020).

    `weight` times the cross-entropy of the source head, which is trained along, towards the
    relationship p(source class | target class), the mean over the labelled rows.  The relationship
    is counted on the training rows: the mean of the answers of the starting model to the rows of a
    target class (the paper's direct approach; no calibration).  Each classification task of the
    target has its own.  Acts where the encoder of the head trains.

    head: safetensors file or directory of the classifier of the source; by default that of the
        directory from which a transformers image model was loaded
    modality: whose encoder has the head; by default the only one for images
    Raises `ValueError` if an encoder has no such head.
    """

    needs = ("features", "trained_encoders", "numbered_rows")

    def __init__(
        self, head: str | None = None, weight: float = 2.3, modality: str | None = None
    ) -> None:
        check_not_negative("co_tuning", weight=weight)
        self.head = None if head is None else str(head)
        self.weight, self.modality = weight, modality
        self._meaning: dict[str, Tensor] = {}  # (C, source classes), by task

    def build(self, model: TransferModel) -> None:
        encoder = model.encoders[self._name(model)]
        self.module = load_source_head(encoder, self.head)

    def _name(self, model: TransferModel) -> str:
        return chosen_modality(dict(model.encoders), self.modality)

    @torch.no_grad()
    def begin(self, model: TransferModel, look: Look) -> None:
        assert isinstance(self.module, nn.Linear)
        name = self._name(model)
        sums: dict[str, Tensor] = {}
        named = {n: getattr(t, "classes", None) for n, t in model.tasks.items()}
        classes = {task: len(found) for task, found in named.items() if found is not None}
        training = model.training
        model.eval()
        for batch in look.unstored("train"):
            features = model.encode(name, batch.inputs.get(name), len(batch))
            answers = self.module(head_input(model.encoders[name], features).float()).softmax(1)
            for task in classes:
                targets = batch.targets[task]
                known = features.present & model.tasks[task].labelled(targets)
                shares = class_shares(targets, classes[task]) * known.unsqueeze(1)
                found = torch.cat([shares.T @ answers, shares.sum(0).unsqueeze(1)], 1)
                sums[task] = sums[task] + found if task in sums else found
        model.train(training)
        self._meaning = {
            task: relationship(total[:, :-1], total[:, -1:])
            for task, found in sums.items()
            for total in [over_processes(found)]
            if total[:, -1].any()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"meaning": {name: value.cpu() for name, value in self._meaning.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._meaning = dict(state["meaning"])

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert outputs.features is not None
        assert isinstance(self.module, nn.Linear)
        name = self._name(model)
        encoder, features = model.encoders[name], outputs.features[name]
        if not is_trainable(encoder):
            return loss
        answers = self.module(head_input(encoder, features).float()).log_softmax(1)
        for task, meaning in self._meaning.items():
            targets = batch.targets[task]
            wanted = class_shares(targets, len(meaning)) @ meaning.to(answers.device)
            weights = model.tasks[task].loss_weight(targets) * features.present
            rows = weights * -(wanted * answers).sum(1)
            share = self.weight * model.tasks[task].weight
            loss = loss + share * rows.sum() / batch.counts[task]
        return loss


def class_shares(targets: Tensor, classes: int) -> Tensor:
    """Targets (B,) or shares of classes (B, C) -> (B, C), whatever where unlabelled."""
    if targets.ndim == 2:
        return targets.clamp_min(0)
    return nn.functional.one_hot(targets.clamp_min(0), classes).float()


def relationship(sums: Tensor, rows: Tensor) -> Tensor:
    """Summed answers (C, S) and numbers of rows (C, 1) -> p(source class | target class).

    A class without rows means what all of them together mean.
    """
    whole = sums.sum(0) / rows.sum()
    return torch.where(rows > 0, sums / torch.where(rows > 0, rows, 1), whole)
