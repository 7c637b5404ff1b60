"""Weights that mattered for the source are held back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.features import Batch
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import Kept, check_not_negative, pull
from mmtransfer.methods.unimodal import over_processes
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest, register_method

LABELS = ("sampled", "given")


@register_method("ewc")
class EWC(Method):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017).

    Half of `strength` times the sum over parameters of their Fisher information on the source
    times the squared distance from the start, added to the gradients.  The Fisher information is
    the mean over the labelled rows of the split "source" of the squared gradient of the
    log-likelihood, row by row: one backward pass for each, so a few hundred rows will do.

    labels: "sampled" from the model's own answers, seeded by row (the Fisher information), or as
        "given" (the empirical one)
    """

    needs = ("source",)

    def __init__(self, strength: float = 100.0, labels: str = "sampled") -> None:
        check_not_negative("ewc", strength=strength)
        if labels not in LABELS:
            raise ValueError(f"unknown labels {labels!r} of ewc.{nearest(labels, LABELS)}")
        self.strength, self.labels = strength, labels
        self._start, self._fisher = Kept(), Kept()

    def begin(self, model: TransferModel, look: Look) -> None:
        trained = {p: p.requires_grad for p in model.parameters()}
        named = {n: p for n, p in model.named_parameters() if not n.startswith("unimodal.")}
        training = model.training
        model.eval().requires_grad_(True)  # a later phase may train what this one does not
        sums = {name: torch.zeros_like(p) for name, p in named.items()}
        rows = torch.zeros((), device=model.device)
        for batch in look.unstored("source", 1):
            loss = self._surprise(model, batch)
            if loss is None:
                continue
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.square()
            rows += 1
        rows = over_processes(rows)
        if not rows:
            raise ValueError("ewc: no row of the source has a label of any task")
        for parameter, was in trained.items():
            parameter.requires_grad_(was)
        model.train(training)
        self._start, self._fisher = Kept(), Kept()
        for name, parameter in named.items():
            fisher = over_processes(sums.pop(name)) / rows
            if fisher.any():
                self._fisher.keep(name, fisher)
                self._start.keep(name, parameter)

    def _surprise(self, model: TransferModel, batch: Batch) -> Tensor | None:
        """Negative log-likelihood of a batch of one row, None where nothing is known of it."""
        known = [n for n, t in model.tasks.items() if t.labelled(batch.targets[n]).all()]
        if int(batch.index) < 0 or not known:
            return None
        logits = model(batch.inputs, 1).logits
        losses = []
        for name in known:
            targets = batch.targets[name]
            if self.labels == "sampled":
                generator = torch.Generator().manual_seed(int(batch.index))
                answers = logits[name].detach().softmax(-1).cpu()
                drawn = torch.multinomial(answers, 1, generator=generator)[0]
                losses.append(F.cross_entropy(logits[name], drawn.to(targets.device)))
            else:
                losses.append(model.tasks[name].loss(logits[name], targets).sum())
        return torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start.state_dict(), "fisher": self._fisher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._fisher = Kept(state["start"]), Kept(state["fisher"])

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name in self._fisher:
                start = self._start.beside(name, parameter)
                pull(parameter, start, self.strength, self._fisher.beside(name, parameter))
