"""What may act on the loop: the rows, the loss, the gradients or the weights, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mmtransfer.features import Batch, Outputs, Row, RowContext
from mmtransfer.model import TransferModel
from mmtransfer.registry import Configurable, methods


@dataclass
class Observed:
    """What a model says of all N rows of a split, in order, on the CPU, without gradient.

    logits: {task: (N, C)}; fused: (N, width); targets: {task: (N,)}
    features: {modality: (N, D)} pooled, zeros where absent; present: {modality: (N,)} bool
    """

    logits: dict[str, Tensor]
    fused: Tensor
    features: dict[str, Tensor]
    present: dict[str, Tensor]
    targets: dict[str, Tensor]


class Look(Protocol):
    """What a method may see of the data before training; all processes must ask together."""

    @property
    def steps(self) -> int:
        """Steps of the run, if no phase ends early."""
        ...

    def batches(self, split: str) -> Iterator[Batch]:
        """This process's share of the rows of a split, in random order, on the device.

        Rows of one class often stand together, and a batch of them alone would mislead.  Fillers
        have a negative index.
        """
        ...

    def unstored(self, split: str, size: int | None = None) -> Iterator[Batch]:
        """In row order, as inputs of the encoders though features may be stored, `size` a time."""
        ...

    def observe(self, split: str, model: TransferModel | None = None) -> Observed:
        """The present model, or another one that reads the same columns, in eval mode."""
        ...


class Method(Configurable):
    """One small object that overrides one or more of the four hooks.

    Hooks run in the order in which a strategy lists its methods.  What it must know beforehand it
    learns in `begin`, parameters of its own it has in `module`.
    """

    #: modalities of which `on_rows` makes other values, so that activations below a cut cannot be
    #: stored; leaving values out is not meant
    changes: tuple[str, ...] = ()
    #: what it cannot do without, so that a lack is an error at the start: "trained_encoders",
    #: "numbered_rows" (rows that have the same number in each epoch, which those of a stream do
    #: not), "repeated_backward" (it goes backwards by itself through what the step goes through,
    #: too), "second_pass" (it asks `on_gradients` for the gradients elsewhere), "source" (labelled
    #: rows of the source), "unlabelled_rows" (to look at before training), "unlabelled_inputs"
    #: (`Batch.unlabelled` in each step), "unmixed_rows" (it remembers something of each row),
    #: "merged_weights" (it goes by weights, and those of encoders with adapters are products), or
    #: fields of `Outputs` that are given on demand, "unlabelled" being one; a method that needs
    #: "unimodal" or "unimodal_detached" makes these part of the loss in every step.  With
    #: "domains_apart" batch norm that trains sees labelled and unlabelled rows one after the other,
    #: not as one batch
    needs: tuple[str, ...] = ()
    #: what `averaged` gives, where it gives anything: no two methods of a strategy give the same
    averages: tuple[str, ...] = ("parameters", "buffers")
    #: what it trains by itself, at the rate of fusion and heads; it stays behind on saving
    module: nn.Module | None = None

    def build(self, model: TransferModel) -> None:
        """Set `module`, if the method has one; on every start of a run, a resumed one too."""

    def begin(self, model: TransferModel, look: Look) -> None:
        """Look at the model as it comes and at the data, once, before the first step of a run.

        What an earlier run has left in the method is to be forgotten.  A resumed run does not come
        here: what was learned must be part of `state_dict`.
        """

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

    def on_gradients(self, model: TransferModel, again: Callable[[], None]) -> None:
        """Change gradients in place, before clipping and the optimiser's step.

        again: makes the gradients of this step anew, at the present weights
        """

    def on_weights(self, model: TransferModel, step: int) -> None:
        """Look at or change weights in place, after the optimiser's step."""

    def averaged(self, model: TransferModel) -> Mapping[str, Tensor]:
        """Weights by name that are validated and kept in place of the present ones, where any."""
        return {}


def build_method(spec: str | Mapping[str, Any] | Method) -> Method:
    """A method by name, as `{"name": ..., option: value}`, as its `config()`, or as it is."""
    if isinstance(spec, Method):
        return spec
    if isinstance(spec, Mapping) and "class" in spec:
        known: Method = Method.from_config(dict(spec))
        return known
    method: Method = methods.build(spec)
    return method
