"""Whole tensors out of a model and an optimiser, and back, whether FSDP2 has split them or not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def resharded(model: nn.Module) -> None:
    """Put the split parameters back in place, which FSDP2 leaves whole after a forward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU of all of a tensor; of a split one all processes must ask together."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu", copy=True).contiguous()


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be split."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements)
    with torch.no_grad():
        target.copy_(value)


def state_of(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Whole parameters and buffers of these names; all processes ask together."""
    return {name: whole(t) for name, t in model.state_dict().items() if name in names}


def load_whole(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take up what `state_of` gave."""
    own = model.state_dict()
    for name, tensor in state.items():
        fill(own[name], tensor)


@contextmanager
def averaged(model: TransferModel, methods: Iterable[Method]) -> Iterator[bool]:
    """With the weights that methods want to be judged by, if any; -> whether there are any."""
    chosen = {n: t for method in methods for n, t in method.averaged(model).items()}
    own = model.state_dict()
    kept = {name: own[name].detach().clone() for name in chosen}
    with torch.no_grad():
        for name, tensor in chosen.items():
            own[name].copy_(tensor)
    try:
        yield bool(chosen)
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                own[name].copy_(tensor)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Every process has all parameters, so that a part of the model can be called by itself."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of the optimiser by parameter name, whole and on the CPU."""
    return {
        name: {
            key: whole(value) if isinstance(value, Tensor) else value
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Take up what `optimizer_state` gave.  Raises `ValueError` for unknown parameters."""
    parameters = dict(model.named_parameters())
    for name, values in state.items():
        if name not in parameters:
            raise ValueError(f"the optimiser's state is of a parameter {name!r} that is not here")
        optimizer.state[parameters[name]] = {
            key: _placed(value, parameters[name]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    if value.ndim == 0 or value.shape != parameter.shape:  # a count, say
        return value.to(parameter.device)
    # With the parameter's strides: fused kernels walk over the memory of both side by side.
    target = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    fill(target, value)
    return target
