"""Batch norm with the statistics of the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmtransfer.features import Activations, Batch, Features, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.unimodal import over_processes
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

Norm = nn.modules.batchnorm._BatchNorm
#: by module name: mean and variance of each channel, and over how many batches, or steps
Statistics = dict[str, tuple[Tensor, Tensor, Tensor]]


@register_method("adabn")
class AdaBN(Method):
    """Encoders' batch norm uses the target's statistics when judged and kept (Li et al., 2017).

    In training it keeps those of the source: of each batch, or, in pretrained encoders, running
    ones, which are first replaced by those of the training rows.  The unlabelled rows pass through
    the encoders once more in each step, without gradient, normalised by their own batch; running
    means of these statistics replace the source's for validation and in the model that is kept, so
    that validation rows should be of the target.  A modality of which no unlabelled row passed
    stays as it is, and so do layers below activations that are stored.  Where several phases train
    encoders, later ones begin with the statistics of the target.  It does not go with `wise_ft`,
    whose weights are not those that gave the statistics: use `adapt_batch_norm` afterwards.

    momentum: of the running statistics, the share of the latest step
    Raises `ValueError` where no encoder has batch norm, and under FSDP.
    """

    needs = ("unlabelled_inputs", "domains_apart", "trained_encoders")
    averages = ("buffers",)

    def __init__(self, momentum: float = 0.1) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(f"the momentum of adabn must lie in (0, 1], found {momentum}")
        self.momentum = momentum
        self.target: Statistics = {}  # the same on all processes
        self._seen: list[Batch] = []  # unlabelled ones, in this step

    def build(self, model: TransferModel) -> None:
        if not norms(model):
            kinds = ", ".join(type(encoder).__name__ for encoder in model.encoders.values())
            raise ValueError(f"adabn needs an encoder with batch norm, found {kinds}")
        self.target, self._seen = {}, []

    def begin(self, model: TransferModel, look: Look) -> None:
        still = {n: e for n, e in model.encoders.items() if e.pretrained}
        found = gathered(model, look.batches("train"))
        prefixes = tuple(f"encoders.{name}." for name in still)
        own = {name: s for name, s in over_all(found).items() if name.startswith(prefixes)}
        state = model.state_dict()
        for name, value in buffers(own).items():
            state[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"target": {n: [m.cpu(), v.cpu(), int(k)] for n, (m, v, k) in self.target.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.target = {n: (m, v, m.new_tensor(k)) for n, (m, v, k) in state["target"].items()}
        self._seen = []

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        if isinstance(model, FSDPModule):
            raise ValueError("adabn needs a model that is whole: use DDP")
        assert batch.unlabelled is not None
        self._seen.append(batch.unlabelled)
        return loss

    def on_weights(self, model: TransferModel, step: int) -> None:
        # Not before: the backward pass needs the source's statistics as they were.
        seen, self._seen = self._seen, []
        for name, (mean, variance, batches) in over_all(gathered(model, seen)).items():
            before = self.target.get(name, (mean, variance, torch.zeros_like(batches)))
            past_mean, past_variance, steps = (tensor.to(mean.device) for tensor in before)
            steps = steps + (batches > 0)
            share = torch.where(batches > 0, (1 / steps.clamp_min(1)).clamp_min(self.momentum), 0)
            self.target[name] = (
                past_mean.lerp(mean, share),
                past_variance.lerp(variance, share),
                steps,
            )

    def averaged(self, model: TransferModel) -> Mapping[str, Tensor]:
        return buffers(self.target)


def adapt_batch_norm(model: TransferModel, batches: Iterable[Batch]) -> None:
    """Give the encoders' batch norm the statistics of these batches, for a model that is trained.

    What `adabn` does in training, afterwards and on one process; for encoders that stay frozen it
    is the only way, as their features are computed once.  Batches must hold encoder inputs, many
    rows each (`mmtransfer.data.collate.Collate`), in random order: rows of one class are too alike.
    """
    state = model.state_dict()
    for name, value in buffers(gathered(model, batches)).items():
        state[name].copy_(value)


def norms(model: TransferModel) -> dict[str, Norm]:
    """Batch norm of the encoders that keeps statistics, by module name."""
    return {
        f"encoders.{name}.{path}": module
        for name, encoder in model.encoders.items()
        for path, module in encoder.named_modules()
        if isinstance(module, Norm) and module.track_running_stats
    }


def gathered(model: TransferModel, batches: Iterable[Batch]) -> Statistics:
    """Mean over batches of the statistics of each batch, as `torch.optim.swa_utils.update_bn`.

    Batches with fewer than two real rows of a modality are passed over for it; what then had no
    batch at all has a count of 0.
    """
    layers = norms(model)
    with torch.no_grad(), _own_statistics(model, layers):
        for batch in batches:
            real = batch.index >= 0
            for name, inputs in batch.inputs.items():
                if isinstance(inputs, Features) or int(real[inputs.rows].sum()) < 2:
                    continue
                encoder = model.encoders[name]
                if isinstance(inputs, Activations):
                    encoder.above(inputs.depth, inputs.features)
                else:
                    encoder(**inputs.values)
        return {
            name: (layer.running_mean.clone(), layer.running_var.clone(), count.float())
            for name, layer in layers.items()
            if layer.running_mean is not None and layer.running_var is not None
            for count in [layer.num_batches_tracked]
            if count is not None
        }


@contextmanager
def _own_statistics(model: TransferModel, layers: Mapping[str, Norm]) -> Iterator[None]:
    """Eval mode, but batch norm goes by its batch and averages anew; afterwards as before."""
    modes = {module: module.training for e in model.encoders.values() for module in e.modules()}
    kept = {n: [b.clone() for b in layer.buffers()] for n, layer in layers.items()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    for encoder in model.encoders.values():
        encoder.eval()
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, layer in layers.items():
            layer.momentum = momenta[name]
            for buffer, value in zip(layer.buffers(), kept[name], strict=True):
                buffer.copy_(value)


def over_all(found: Statistics) -> Statistics:
    """Means over processes, which all ask together, weighed by their batches."""
    parts = [
        torch.cat([mean * count, variance * count, count.unsqueeze(0)])
        for mean, variance, count in found.values()
    ]
    summed = over_processes(torch.cat(parts)).split([len(part) for part in parts])
    means = {}
    for name, total in zip(found, summed, strict=True):
        count = total[-1]
        mean, variance = (total[:-1] / count.clamp_min(1)).chunk(2)
        means[name] = (mean, variance, count)
    return means


def buffers(found: Statistics) -> dict[str, Tensor]:
    """By their names in the state of the model; layers without a batch are left out."""
    known = {name: statistics for name, statistics in found.items() if statistics[2] > 0}
    means = {f"{name}.running_mean": mean for name, (mean, _, _) in known.items()}
    return means | {f"{name}.running_var": variance for name, (_, variance, _) in known.items()}
