"""What may act on the loop: the rows, the loss, the gradients or the weights, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmtransfer.features import Batch, Outputs, Row, RowContext
from mmtransfer.model import TransferModel
from mmtransfer.registry import Configurable, methods


class Method(Configurable):
    """One small object that overrides one or more of the four hooks.

    Hooks run in the order in which a strategy lists its methods.
    """

    #: modalities of which `on_rows` makes other values, so that activations below a cut cannot be
    #: stored; leaving values out is not meant
    changes: tuple[str, ...] = ()
    #: what it cannot do without, so that a lack is an error at the start: "trained_encoders",
    #: "numbered_rows" (rows that have the same number in each epoch, which those of a stream do
    #: not), "repeated_backward" (it goes backwards by itself through what the step goes through,
    #: too), or fields of `Outputs` that are given on demand; a method that needs "unimodal" or
    #: "unimodal_detached" makes these part of the loss in every step
    needs: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this method: tensors, numbers, text, lists, dictionaries."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave, and forget what was gathered in a step that broke off."""

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        """Change training rows in place, before they are read; runs in loader workers."""

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        """The loss to descend, given the task loss."""
        return loss

    def on_gradients(self, model: TransferModel) -> None:
        """Change gradients in place, before clipping and the optimiser's step."""

    def on_weights(self, model: TransferModel, step: int) -> None:
        """Look at or change weights in place, after the optimiser's step."""


def build_method(spec: str | Mapping[str, Any] | Method) -> Method:
    """A method by name, as `{"name": ..., option: value}`, or as it is."""
    if isinstance(spec, Method):
        return spec
    method: Method = methods.build(spec)
    return method
