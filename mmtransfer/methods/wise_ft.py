"""Half way between where fine-tuning started and where it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import Kept
from mmtransfer.methods.unimodal import local
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.registry import register_method


@register_method("wise_ft")
class WiSEFT(Method):
    """Weights interpolated between start and end of fine-tuning (Wortsman et al., CVPR 2022).

    The model is validated and kept by `(1 - alpha) * start + alpha * present` of all weights and
    running statistics.  The start is where the first encoder begins to train: after a linear
    probe, if a phase of that comes first.  Later phases begin with the weights that were kept, and
    what they leave frozen stays so.  `mmtransfer.transfer.soups.alpha_curve` gives the whole
    curve of a trained model, by this method, for any alpha above 0.  It goes with no other method
    that averages, `ema` or `adabn`, nor with adapters, as what lies between products of factors is
    no product of factors between.

    alpha: 0 is the start, 1 plain fine-tuning
    joint: whether fusion and heads are interpolated too; by default if a phase has trained them
        before, as new ones have no start that is worth anything
    """

    needs = ("trained_encoders", "merged_weights")

    def __init__(self, alpha: float = 0.5, joint: bool | None = None) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha of wise_ft must lie in [0, 1], found {alpha}")
        self.alpha, self.joint = alpha, joint
        self._start, self._probed = Kept(), False

    def begin(self, model: TransferModel, look: Look) -> None:
        self.load_state_dict({"start": {}, "probed": False})

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start.state_dict(), "probed": self._probed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._probed = Kept(state["start"]), state["probed"]

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        if len(self._start):
            return
        if not any(is_trainable(encoder) for encoder in model.encoders.values()):
            self._probed = True
            return
        joint = self._probed if self.joint is None else self.joint
        chosen = ("encoders.", "fusion.", "heads.") if joint else ("encoders.",)
        for name, tensor in model.state_dict().items():
            if name.startswith(chosen) and tensor.is_floating_point():
                self._start.keep(name, tensor)

    def averaged(self, model: TransferModel) -> Mapping[str, Tensor]:
        own, still = model.state_dict(), frozen(model)
        return {
            # What an earlier phase trained has come that way already.
            name: own[name] if name in still else self._mixed(name, own[name], self.alpha)
            for name in self._start
        }

    def ends(self, model: TransferModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights at start and end of fine-tuning, by name, of a model that a run has kept.

        Raises `ValueError` where it lies at its start: then nothing says where the end was.
        """
        own = model.state_dict()
        start = {name: self._start.beside(name, own[name]) for name in self._start}
        if all(torch.equal(local(tensor), local(own[name])) for name, tensor in start.items()):
            raise ValueError(
                "the model lies where wise_ft started, which leaves no end to go to: alpha is "
                f"{self.alpha}, and either that is 0, or fine-tuning has not run or not validated "
                "better than its start"
            )
        return start, {name: self._mixed(name, own[name], 1 / self.alpha) for name in start}

    def _mixed(self, name: str, own: Tensor, alpha: float) -> Tensor:
        mixed = own.detach().clone()
        start = local(self._start.beside(name, own))
        local(mixed).copy_(torch.lerp(start, local(own), alpha))
        return mixed


def frozen(model: TransferModel) -> set[str]:
    """Names of parameters that do not train now, and of buffers of encoders that do not."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if not parameter.requires_grad} | {
        f"encoders.{modality}.{name}"
        for modality, encoder in model.encoders.items()
        if not is_trainable(encoder)
        for name, _ in encoder.named_buffers(remove_duplicate=False)
    }
