"""Strategies by name that keep near to where the weights started."""

from __future__ import annotations

from mmtransfer.methods.l2_sp import L2SP
from mmtransfer.methods.wise_ft import WiSEFT
from mmtransfer.registry import register_strategy
from mmtransfer.transfer.base import Strategy
from mmtransfer.transfer.presets import full, lp_ft


@register_strategy("l2_sp")
def l2_sp(
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: float | dict[str, float] = 2e-4,
    layer_decay: float = 1.0,
    alpha: float = 0.1,
    beta: float = 0.01,
) -> Strategy:
    """Full fine-tuning, pulled to its start instead of to zero (L2-SP, Li et al., ICML 2018)."""
    plain = full(epochs, lr, encoder_lr, layer_decay, weight_decay=0.0)
    return Strategy(plain.phases, [L2SP(alpha, beta)])


@register_strategy("wise_ft")
def wise_ft(
    probe_epochs: int = 20,
    epochs: int = 10,
    probe_lr: float = 1e-3,
    lr: float = 5e-4,
    encoder_lr: float | dict[str, float] = 2e-4,
    layer_decay: float = 1.0,
    weight_decay: float = 0.05,
    alpha: float = 0.5,
) -> Strategy:
    """Probe, fine-tuning, and weights between the two (WiSE-FT, Wortsman et al., CVPR 2022)."""
    tuned = lp_ft(probe_epochs, epochs, probe_lr, lr, encoder_lr, layer_decay, weight_decay)
    return Strategy(tuned.phases, [WiSEFT(alpha)])
