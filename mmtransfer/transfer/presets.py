"""Strategies by name: each is a list of phases that could be written out by hand."""

from __future__ import annotations

from typing import Any

from mmtransfer.registry import register_strategy
from mmtransfer.transfer.base import Phase, Strategy

Rate = float | dict[str, float]


@register_strategy("linear_probe")
def linear_probe(epochs: int = 40, lr: float = 1e-3, weight_decay: float = 0.05) -> Strategy:
    """Frozen encoders, features computed once; fusion and heads are trained."""
    return Strategy([Phase(epochs, lr, weight_decay=weight_decay)])


@register_strategy("full")
def full(
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: Rate = 2e-4,
    layer_decay: Rate = 1.0,
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
    encoder_lr: Rate = 2e-4,
    layer_decay: Rate = 1.0,
    weight_decay: float = 0.05,
) -> Strategy:
    """Linear probe first, then full fine-tuning from its heads (Kumar et al., ICLR 2022)."""
    probe = linear_probe(probe_epochs, probe_lr, weight_decay)
    tuning = full(epochs, lr, encoder_lr, layer_decay, weight_decay)
    return Strategy([*probe.phases, *tuning.phases])


@register_strategy("top_stages")
def top_stages(
    stages: Rate = 2,
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: Rate = 2e-4,
    layer_decay: Rate = 1.0,
    weight_decay: float = 0.05,
) -> Strategy:
    """The last stages of each encoder are trained, so many or a share (Yosinski et al., 2014)."""
    phase = Phase(epochs, lr, encoder_lr, stages, layer_decay, weight_decay)
    return Strategy([phase])


@register_strategy("layer_decay")
def layer_decay(
    decay: Rate = 0.75,
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: Rate = 2e-4,
    weight_decay: float = 0.05,
) -> Strategy:
    """Everything is trained, each stage slower than the one above (ELECTRA, ICLR 2020)."""
    return full(epochs, lr, encoder_lr, decay, weight_decay)


@register_strategy("gradual_unfreezing")
def gradual_unfreezing(
    steps: int = 4,
    epochs: int = 2,
    last_epochs: int = 6,
    lr: float = 1e-3,
    encoder_lr: Rate = 2e-4,
    layer_decay: Rate = 1 / 2.6,
    weight_decay: float = 0.05,
) -> Strategy:
    """Heads first, then stage after stage from the top (ULMFiT, Howard & Ruder, ACL 2018).

    steps: phases after the probe; each unfreezes one more 1/steps of an encoder's stages, which is
        one stage as in the paper where it has so many
    epochs, last_epochs: of each phase, and of the last one, which trains everything
    """
    if steps < 1:
        raise ValueError(f"gradual_unfreezing needs at least 1 step, found {steps}")
    probe = linear_probe(epochs, lr, weight_decay)
    shares: list[float | None] = [*(k / steps for k in range(1, steps)), None]
    counts = [epochs] * (steps - 1) + [last_epochs]
    tuning = [
        Phase(count, lr, encoder_lr, share, layer_decay, weight_decay)
        for share, count in zip(shares, counts, strict=True)
    ]
    return Strategy([*probe.phases, *tuning])


@register_strategy("bitfit")
def bitfit(
    epochs: int = 12, lr: float = 2e-3, encoder_lr: Rate = 1e-3, weight_decay: float = 0.05
) -> Strategy:
    """Of the encoders only the biases are trained (BitFit, Ben Zaken et al., ACL 2022)."""
    return Strategy([Phase(epochs, lr, encoder_lr, weight_decay=weight_decay, parts="bias")])


@register_strategy("norm_only")
def norm_only(
    epochs: int = 12, lr: float = 2e-3, encoder_lr: Rate = 1e-3, weight_decay: float = 0.05
) -> Strategy:
    """Of the encoders only norms are trained, scale and shift (Frankle et al., ICLR 2021)."""
    return Strategy([Phase(epochs, lr, encoder_lr, weight_decay=weight_decay, parts="norm")])


@register_strategy("lora")
def lora(
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Any = "auto",
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: Rate = 1e-3,
    weight_decay: float = 0.05,
    merge: bool = True,
) -> Strategy:
    """Low-rank matrices beside frozen weights are trained (LoRA, Hu et al., ICLR 2022)."""
    options = {"rank": rank, "alpha": alpha, "dropout": dropout, "target_modules": target_modules}
    plain = full(epochs, lr, encoder_lr, weight_decay=weight_decay)
    return _adapted(plain, merge, name="lora", **options)


@register_strategy("dora")
def dora(
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Any = "auto",
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: Rate = 1e-3,
    weight_decay: float = 0.05,
    merge: bool = True,
) -> Strategy:
    """LoRA that trains the length of each weight by itself (DoRA, Liu et al., ICML 2024)."""
    options = {"rank": rank, "alpha": alpha, "dropout": dropout, "target_modules": target_modules}
    plain = full(epochs, lr, encoder_lr, weight_decay=weight_decay)
    return _adapted(plain, merge, name="dora", **options)


@register_strategy("ia3")
def ia3(
    target_modules: Any = "auto",
    epochs: int = 12,
    lr: float = 2e-3,
    encoder_lr: Rate = 3e-3,
    weight_decay: float = 0.05,
    merge: bool = True,
) -> Strategy:
    """A factor for each output of frozen layers is trained (IA3, Liu et al., NeurIPS 2022)."""
    plain = full(epochs, lr, encoder_lr, weight_decay=weight_decay)
    return _adapted(plain, merge, name="ia3", target_modules=target_modules)


def _adapted(plain: Strategy, merge: bool, **adapter: Any) -> Strategy:
    """The same phases, in which adapters of all encoders are trained in place of their weights."""
    adapters: Any = {"all": adapter}
    return Strategy(plain.phases, adapters=adapters, merge=merge)
