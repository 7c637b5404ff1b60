"""Steps by the gradient at the worst point nearby, towards flat minima."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmtransfer.methods.base import Method
from mmtransfer.methods.unimodal import local, whole
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

EPSILON = 1e-12


@register_method("sam")
class SAM(Method):
    """Sharpness-aware minimisation (Foret et al., ICLR 2021), optionally adaptive.

    The step is taken with the gradients at `w + rho * g / |g|`, where g are those at the weights w:
    twice the work of a plain step.  Adaptive (ASAM, Kwon et al., ICML 2021) the neighbourhood is
    measured in units of each weight: `w + rho * w^2 g / |w g|`.  Running statistics of batch norm
    only take the first pass.  It stands first among methods that act on gradients, as
    `build_strategy` sees to.

    rho: radius; adaptive ones are about ten times as large
    """

    needs = ("second_pass",)

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        if not rho > 0:
            raise ValueError(f"rho of sam must be greater than 0, found {rho}")
        self.rho, self.adaptive = rho, adaptive

    @torch.no_grad()
    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        pairs = [(p.detach(), p.grad) for p in model.parameters() if p.grad is not None]
        climbs = [p.abs() * g if self.adaptive else g for p, g in pairs]
        size = whole(nn.utils.get_total_norm(climbs))
        before = [local(p).clone() for p, _ in pairs]
        for (p, _), climb in zip(pairs, climbs, strict=True):
            direction = local(p).abs() * local(climb) if self.adaptive else local(climb)
            local(p).add_(direction * (self.rho / (size + EPSILON)))
        with torch.enable_grad(), statistics_kept(model):
            again()
        for (p, _), kept in zip(pairs, before, strict=True):
            local(p).copy_(kept)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norm that trains takes no notice of what passes."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
