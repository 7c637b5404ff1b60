"""What methods of several tasks share: the tasks' own gradients on what they have in common."""

from __future__ import annotations

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mmtransfer.features import Outputs
from mmtransfer.methods.unimodal import over_processes
from mmtransfer.model import TransferModel

HALF_SCALE = 1024.0  # gradients in fp16 below 6e-8 would be 0


class TaskGradients:
    """Gradients (T, N) of each task on shared parameters, gathered over the parts of a step."""

    def __init__(self) -> None:
        self.sums: list[list[Tensor]] = []
        self.parts = 0

    def add(self, outputs: Outputs, parameters: list[Tensor]) -> None:
        """Add those of a micro-batch; nothing is left in `.grad`."""
        half = any(logits.dtype == torch.float16 for logits in outputs.logits.values())
        scale = HALF_SCALE if half else 1.0
        found = []
        for loss in outputs.losses.values():
            given = torch.autograd.grad(
                loss * scale, parameters, retain_graph=True, allow_unused=True
            )
            pairs = zip(given, parameters, strict=True)
            found.append([torch.zeros_like(p) if g is None else g / scale for g, p in pairs])
        if self.parts:
            for total, new in zip(self.sums, found, strict=True):
                torch._foreach_add_(total, new)
        else:
            self.sums = found
        self.parts += 1

    def take(self) -> Tensor:
        """(T, N) of the whole step, the same in all processes; then begins anew."""
        flat = torch.stack([torch.cat([g.flatten() for g in of]) for of in self.sums])
        found = over_processes(flat) / (self.parts * PartialState().num_processes)
        self.forget()
        return found

    def forget(self) -> None:
        self.sums, self.parts = [], 0


def shared_parameters(model: TransferModel) -> list[Tensor]:
    """What trains of encoders and fusion, which all tasks have in common.

    Raises `ValueError` under FSDP, which splits parameters again after each of several gradients.
    """
    if isinstance(model, FSDPModule):
        raise ValueError("gradients of single tasks need whole parameters: use DDP, not FSDP")
    parts = (model.encoders, model.fusion)
    return [p for part in parts for p in part.parameters() if p.requires_grad]  # type: ignore[union-attr]


def last_shared(model: TransferModel) -> list[Tensor]:
    """What trains of the fusion, the last that all tasks share; of the encoders if it is frozen."""
    shared = shared_parameters(model)
    return [p for p in model.fusion.parameters() if p.requires_grad] or shared
