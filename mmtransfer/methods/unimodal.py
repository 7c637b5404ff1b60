"""What methods of balance share: losses of unimodal heads, and gradients of encoders."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate.utils import reduce
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mmtransfer.features import Batch
from mmtransfer.model import TransferModel
from mmtransfer.tasks.base import Task


def unimodal_losses(
    model: TransferModel, batch: Batch, logits: Mapping[str, Tensor] | None
) -> Tensor:
    """Logits (B, M, C) of each task -> losses (M,), weighed like the loss that `on_loss` gets.

    A row counts for the modalities that it has; a modality that no row has, has a loss of 0.
    """
    assert logits is not None
    assert batch.present is not None
    losses = [
        task.weight * torch.where(batch.present, found, 0).sum(0) / batch.shares[name]
        for name, task in model.tasks.items()
        for found in [row_losses(task, logits[name], batch.targets[name])]
    ]
    return torch.stack(losses).sum(0)


def row_losses(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (B, M, C) -> the loss (B, M) of each row by each of M opinions, 0 if unlabelled."""
    return torch.stack([task.loss(one, targets) for one in logits.unbind(1)], 1)


def target_losses(task: Task, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, M, C) -> (B, M) negative log-likelihood of the target, (B, 1) where there is one.

    Without gradient, label smoothing and weights of classes.
    """
    with torch.no_grad():
        weight = task.loss_weight(targets).unsqueeze(1)
        losses = row_losses(task, logits, targets) / torch.where(weight > 0, weight, 1)
    return losses, weight > 0


def sums(values: Tensor, counted: Tensor, batch: Batch) -> Tensor:
    """Values (B, M), rows that count (B, 1) -> (2, M) sums by modality over those present, rows."""
    assert batch.present is not None
    counted = counted & batch.present
    return torch.stack([torch.where(counted, values, 0).sum(0), counted.sum(0)])


def mean_of_others(values: Tensor, known: Tensor) -> Tensor:
    """(M,) -> for each the mean over the other known ones, 0 where there are none."""
    values = torch.where(known, values, 0)
    others = known.sum() - known.to(values.dtype)
    return (values.sum() - values) / others.clamp_min(1)


def over_processes(values: Tensor) -> Tensor:
    """Sum over all processes, which ask together."""
    total: Tensor = reduce(values, "sum")
    return total


def encoder_gradients(model: TransferModel) -> dict[str, list[Tensor]]:
    """The gradients that each encoder has, by modality in the order of the fusion."""
    return {
        name: [p.grad for p in model.encoders[name].parameters() if p.grad is not None]
        for name in model.fusion.modalities
    }


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, in place; all of it without FSDP."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one that FSDP has split, all processes ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(values: Tensor, like: Tensor) -> Tensor:
    """The part of whole values, the same in all processes, that belongs to `local(like)`."""
    if not isinstance(like, DTensor):
        return values
    placed = distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)
    return placed.to_local()
