"""L2 towards the starting point instead of towards zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import Kept, check_not_negative, pull
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest, register_method

JOINT = ("fusion", "heads")


@register_method("l2_sp")
class L2SP(Method):
    """L2-SP: weights are pulled to where they started (Li, Grandvalet & Davoine, ICML 2018).

    Half of alpha times the squared distance of pretrained parameters from their values at the
    start, and half of beta times the squared norm of new ones, added to the gradients.  Parameters
    without a gradient stay where they are.  Take `weight_decay: 0`, which pulls to zero.

    new: prefixes of the names of parameters that are new, e.g. "encoders.audio"
    """

    def __init__(self, alpha: float = 0.1, beta: float = 0.01, new: Sequence[str] = JOINT) -> None:
        check_not_negative("l2_sp", alpha=alpha, beta=beta)
        self.alpha, self.beta, self.new = alpha, beta, list(new)
        self._start = Kept()

    def begin(self, model: TransferModel, look: Look) -> None:
        names = [name for name, _ in model.named_parameters()]
        parts = [*JOINT, *(f"encoders.{name}" for name in model.encoders)]
        for prefix in self.new:
            if prefix not in parts and not any(name.startswith(prefix) for name in names):
                raise ValueError(
                    f"l2_sp: no parameter begins with {prefix!r}.{nearest(prefix, parts)}"
                )
        new = (*self.new, "unimodal.")
        found = {n: p for n, p in model.named_parameters() if not n.startswith(new)}
        self._start = Kept()
        for name, parameter in found.items():
            self._start.keep(name, parameter)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._start = Kept(state["start"])  # type: ignore[arg-type]

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            if name in self._start:
                pull(parameter, self._start.beside(name, parameter), self.alpha)
            else:
                pull(parameter, None, self.beta)
