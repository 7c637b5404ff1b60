"""The average of the weights along the way is what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import Kept
from mmtransfer.methods.unimodal import local
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("ema")
class EMA(Method):
    """Exponential moving average of the weights (Polyak & Juditsky, 1992).

    After each step `average = decay * average + (1 - decay) * weights`, of what trains, beginning
    with the weights after its first step.  The model is validated and kept by the averages;
    buffers (running statistics) are those of the present weights.

    warmup: the decay of the n-th step is at most (1 + n) / (10 + n), so that short runs do not
        average over the start
    """

    averages = ("parameters",)

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay of ema must lie in [0, 1), found {decay}")
        self.decay, self.warmup = decay, warmup
        self._averages, self._steps = Kept(), 0

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({"averages": {}, "steps": 0})

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self._averages.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages, self._steps = Kept(state["averages"]), state["steps"]

    def on_weights(self, model: TransferModel, step: int) -> None:
        trained = {
            n: p.detach()
            for n, p in model.named_parameters()
            if p.requires_grad and not n.startswith("unimodal.")
        }
        for name in [n for n in self._averages if n not in trained]:
            self._averages.drop(name)  # of an earlier phase, whose best weights stay
        known = {n: p for n, p in trained.items() if n in self._averages}
        self._steps += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self._steps) / (10 + self._steps))
        if known:
            averages = [local(self._averages.beside(n, p)) for n, p in known.items()]
            update = get_ema_multi_avg_fn(decay)
            update(averages, [local(p) for p in known.values()], None)
        for name in trained.keys() - known.keys():
            self._averages.keep(name, trained[name])

    def averaged(self, model: TransferModel) -> Mapping[str, Tensor]:
        own = dict(model.named_parameters())
        return {name: self._averages.beside(name, own[name]) for name in self._averages}
