"""Finds what would wait for a GPU, on any machine."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
#: what hands a value to the host, or makes a tensor whose shape is such a value
WAITING = (
    aten._local_scalar_dense,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
)
COPYING = (Tensor.cpu, Tensor.numpy, Tensor.tolist)


class SyncError(AssertionError):
    """A value was brought from the device to the host."""


class ForbidSyncs(TorchDispatchMode):
    """A context in which `SyncError` is raised by what would make the host wait for a GPU.

    Reading a value (`item`, `tolist`, `bool`, `if mask.any()`) and shapes that depend on values
    (`nonzero`, `x[mask]`) are meant; they are found on a CPU, where they wait for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = ForbidCopies()

    def __enter__(self) -> ForbidSyncs:
        self.copies.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self.copies.__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        # Filling by a mask with one number needs no shape.
        fills = packet is not aten.index and by_mask and args[2].numel() == 1
        if packet in WAITING or (by_mask and not fills):
            raise SyncError(f"{func} would wait for the device")
        return func(*args, **(kwargs or {}))


class ForbidCopies(TorchFunctionMode):
    """The part of `ForbidSyncs` that is no operation of the dispatcher on a CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in COPYING:
            raise SyncError(f"Tensor.{func.__name__} would wait for the device")
        return func(*args, **(kwargs or {}))
