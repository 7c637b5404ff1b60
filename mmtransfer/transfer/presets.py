"""Strategies by name: each is a list of phases that could be written out by hand."""

from __future__ import annotations

from mmtransfer.registry import register_strategy
from mmtransfer.transfer.base import Phase, Strategy


@register_strategy("linear_probe")
def linear_probe(epochs: int = 40, lr: float = 1e-3, weight_decay: float = 0.05) -> Strategy:
    """Frozen encoders, features computed once; fusion and heads are trained."""
    return Strategy([Phase(epochs, lr, weight_decay=weight_decay)])


@register_strategy("full")
def full(
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: float | dict[str, float] = 2e-4,
    layer_decay: float = 1.0,
    weight_decay: float = 0.05,
) -> Strategy:
    """Everything is trained from the first step on, encoders at a rate of their own."""
    phase = Phase(epochs, lr, encoder_lr, layer_decay=layer_decay, weight_decay=weight_decay)
    return Strategy([phase])


@register_strategy("lp_ft")
def lp_ft(
    probe_epochs: int = 20,
    epochs: int = 10,
    probe_lr: float = 1e-3,
    lr: float = 5e-4,
    encoder_lr: float | dict[str, float] = 2e-4,
    layer_decay: float = 1.0,
    weight_decay: float = 0.05,
) -> Strategy:
    """Linear probe first, then full fine-tuning from its heads (Kumar et al., ICLR 2022)."""
    probe = linear_probe(probe_epochs, probe_lr, weight_decay)
    tuning = full(epochs, lr, encoder_lr, layer_decay, weight_decay)
    return Strategy([*probe.phases, *tuning.phases])
