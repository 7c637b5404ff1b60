"""Weights kept beside those of the model, and the model as it came: what several methods share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from mmtransfer.methods.unimodal import local, split_like, whole
from mmtransfer.model import TransferModel


class Kept:
    """Weights by name, each on the device of the model's own and split as that one is."""

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self._values = dict(values or {})

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keep(self, name: str, tensor: Tensor) -> None:
        """A copy of a tensor of the model, as it is now."""
        self._values[name] = tensor.detach().clone()

    def drop(self, name: str) -> None:
        del self._values[name]

    def beside(self, name: str, own: Tensor) -> Tensor:
        """The kept tensor that belongs to one of the model, in the same place and layout."""
        found = self._values[name]
        if type(found) is not type(own.detach()) or found.device != own.device:
            placed = own.detach().clone()
            local(placed).copy_(split_like(found.to(own.device), placed))
            found = self._values[name] = placed
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Whole copies on the CPU; all processes ask together."""
        return {n: whole(t).to("cpu", copy=True) for n, t in self._values.items()}


def frozen_copy(model: TransferModel) -> TransferModel:
    """The model as it is now, in eval mode, without gradients and unimodal heads."""
    copy = deepcopy(model)
    copy.provide(())
    copy.eval().requires_grad_(False)
    return copy


@torch.no_grad()
def pull(own: Tensor, start: Tensor | None, strength: float, weight: Tensor | None = None) -> None:
    """Add `strength * weight * (own - start)` to the gradient of a parameter; start None is 0."""
    assert own.grad is not None
    away = local(own.detach())
    if start is not None:
        away = away - local(start)
    if weight is not None:
        away = away * local(weight)
    local(own.grad).add_(away, alpha=strength)


def check_not_negative(method: str, **options: float) -> None:
    """Raise `ValueError` for an option below 0."""
    for name, value in options.items():
        if not value >= 0:
            raise ValueError(f"{name} of {method} must be at least 0, found {value}")
