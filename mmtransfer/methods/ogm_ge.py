"""On-the-fly gradient modulation: the encoder of a modality that leads is held back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs, Row, RowContext
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.unimodal import (
    encoder_gradients,
    local,
    mean_of_others,
    over_processes,
    split_like,
    sums,
    target_losses,
    unimodal_losses,
    whole,
)
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("ogm_ge")
class OGMGE(Method):
    """Gradients of a leading modality's encoder shrink (OGM-GE, Peng et al., CVPR 2022).

    A modality's score is the mean probability that its head gives to the true class; the heads
    learn on detached features and leave no trace in the rest.  Its ratio is the score by the mean
    score of the others (the paper has two modalities).  Where a ratio r is above 1 the encoder's
    gradient is multiplied by `1 - tanh(alpha r)`.  Then each encoder's weights, not their biases
    and norms, get noise as strong as the deviation of their gradient before (GE, to generalise).
    With one modality it does nothing.

    alpha: how strongly a lead counts
    noise: share of the gradient's deviation, 0 for none
    start, end: first step of the run that is modulated, and the step at which that ends
    """

    needs = ("unimodal_detached", "trained_encoders")

    def __init__(
        self, alpha: float = 0.5, noise: float = 1.0, start: int = 1, end: int | None = None
    ) -> None:
        for name, value in {"alpha": alpha, "noise": noise}.items():
            if not value >= 0:
                raise ValueError(f"{name} of ogm_ge must be at least 0, found {value}")
        if end is not None and end <= start:
            raise ValueError(f"ogm_ge must end after its start in step {start}, found {end}")
        self.alpha, self.noise, self.start, self.end = alpha, noise, start, end
        self.seed, self.done = 0, 0  # steps
        self._scores: Tensor | None = None  # (2, M) sums of scores, rows, in this step

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        self.seed = context.seed

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({"done": 0})

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done, self._scores = state["done"], None

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        logits = outputs.unimodal_detached
        assert logits is not None
        for name, task in model.tasks.items():
            losses, labelled = target_losses(task, logits[name], batch.targets[name])
            found = sums((-losses).exp(), labelled, batch)
            self._scores = found if self._scores is None else self._scores + found
        return loss + unimodal_losses(model, batch, logits).sum()

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        assert self._scores is not None
        scores, self._scores = self._scores, None
        step = self.done + 1
        if step < self.start or (self.end is not None and step >= self.end):
            return
        gradients = encoder_gradients(model)
        if len(gradients) < 2:
            return
        total, rows = over_processes(scores)
        factors = coefficients(total / rows.clamp_min(1), rows > 0, self.alpha)
        generator = torch.Generator(total.device).manual_seed(hash((self.seed, step)) % 2**63)
        for factor, found in zip(factors, gradients.values(), strict=True):
            for gradient in found:
                noise = self._noise(gradient, generator)
                local(gradient).mul_(factor)
                if noise is not None:
                    local(gradient).add_(noise)

    def _noise(self, gradient: Tensor, generator: torch.Generator) -> Tensor | None:
        """Of the gradient's deviation, for the part of it that lies in this process."""
        if not self.noise or gradient.ndim < 2 or gradient.numel() < 2:
            return None
        strength = self.noise * whole(gradient).std()
        drawn = torch.randn(
            gradient.shape, generator=generator, device=strength.device, dtype=gradient.dtype
        )
        return split_like(drawn * strength, gradient)

    def on_weights(self, model: TransferModel, step: int) -> None:
        self.done = step


def coefficients(scores: Tensor, known: Tensor, alpha: float) -> Tensor:
    """Scores (M,), of the modalities that are known -> factors (M,) of their gradients."""
    others = mean_of_others(scores, known)
    ratio = scores / torch.where(others > 0, others, 1)
    leads = known & (others > 0) & (ratio > 1)
    return torch.where(leads, 1 - torch.tanh(alpha * ratio), 1.0)
