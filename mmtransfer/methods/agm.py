"""Adaptive gradient modulation by what each modality contributes to the joint output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs, proper_subsets
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.unimodal import (
    encoder_gradients,
    local,
    mean_of_others,
    over_processes,
    sums,
    target_losses,
)
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

LARGEST = 10.0  # exponent before alpha, as in the authors' code


@register_method("agm")
class AGM(Method):
    """Encoders learn slower while their modality is ahead of its usual lead (Li et al., ICCV 2023).

    The output is shared out among the modalities by their Shapley values, over the outputs with
    some modalities absent; the output without any counts as 0.  `s` is a modality's loss by its own
    share alone, `r = exp(mean s of the others - s)` its lead, and `t` the same lead of the losses
    averaged over all steps before.  The encoder's gradient is multiplied by `exp(alpha (t - r))`,
    with an exponent of at most 10 alpha.  No unimodal heads; with one modality it does nothing.

    alpha: strength; 0 does nothing
    """

    needs = ("subsets", "trained_encoders")

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha >= 0:
            raise ValueError(f"alpha of agm must be at least 0, found {alpha}")
        self.alpha = alpha
        self._past: Tensor | None = None  # (2, M): mean loss over all steps so far, their number
        self._losses: Tensor | None = None  # (2, M): sums of losses, rows, in this step

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        return {} if self._past is None else {"past": self._past.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._past, self._losses = state.get("past"), None

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        if len(model.encoders) < 2:
            return loss
        assert outputs.subsets is not None
        for name, task in model.tasks.items():
            whole = outputs.logits[name].detach().unsqueeze(1)
            logits = torch.cat([outputs.subsets[name], whole], 1).float()  # (B, 2^M - 1, C)
            shares = shapley(logits, batch.present, model.fusion.modalities)
            losses, labelled = target_losses(task, shares, batch.targets[name])
            found = sums(losses, labelled, batch)
            self._losses = found if self._losses is None else self._losses + found
        return loss

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        if self._losses is None:
            return
        total, rows = over_processes(self._losses)
        self._losses = None
        losses, known = total / rows.clamp_min(1), rows > 0
        if self._past is None:
            self._past = torch.zeros(2, len(losses))
        mean, steps = self._past.to(losses.device)
        factors = coefficients(losses, mean, known, self.alpha)
        mean = mean + torch.where(known, (losses - mean) / (steps + 1), 0)
        self._past = torch.stack([mean, steps + known])
        for factor, found in zip(factors, encoder_gradients(model).values(), strict=True):
            for gradient in found:
                local(gradient).mul_(factor)


def shapley(logits: Tensor, present: Tensor | None, modalities: Sequence[str]) -> Tensor:
    """Logits (B, 2^M - 1, C) of all subsets, the whole last -> shares (B, M, C) of the output.

    present: (B, M); an output of absent modalities only counts as 0, so their shares are 0
    """
    assert present is not None
    subsets, m = [*proper_subsets(modalities), tuple(modalities)], len(modalities)
    within = torch.tensor([[name in s for name in modalities] for s in subsets])  # (S, M)
    size = within.sum(1, keepdim=True)
    # A modality joins each subset of the others in a share of all orders of joining.
    joins = torch.tensor([1 / (m * comb(m - 1, k)) for k in range(m)], dtype=logits.dtype)
    weights = torch.where(within, joins[size - 1], -joins[size.clamp_max(m - 1)])  # (S, M)
    within = within.to(logits.device, non_blocking=True)
    weights = weights.to(logits.device, non_blocking=True)
    some = (present.unsqueeze(1) & within).any(2)  # (B, S)
    return torch.einsum("bsc,sm->bmc", torch.where(some.unsqueeze(2), logits, 0), weights)


def coefficients(losses: Tensor, past: Tensor, known: Tensor, alpha: float) -> Tensor:
    """Losses (M,) of this step and their means before -> factors (M,) of the gradients."""
    lead = (mean_of_others(losses, known) - losses).exp()
    usual = (mean_of_others(past, known) - past).exp()
    alone = known.sum() < 2
    return torch.where(known & ~alone, (alpha * (usual - lead).clamp_max(LARGEST)).exp(), 1.0)
