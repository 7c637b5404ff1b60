"""A loop written by hand, as the trainer's measure: plain PyTorch, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import PartialState
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mmtransfer import Phase, TrainingOptions, TransferModel
from mmtransfer.data.collate import Collate
from mmtransfer.data.rows import NumberedRows
from mmtransfer.data.samplers import TrainBatches
from mmtransfer.features import Batch
from mmtransfer.training.setup import compile_encoders, forget_compiled

Rows = list[dict[str, Any]]
Epoch = Callable[[int], Iterable[Batch]]


def fit_by_hand(
    model: TransferModel, batches: Epoch, phase: Phase, steps: int, o: TrainingOptions
) -> list[float]:
    """-> mean loss of each epoch; all tasks are classifications."""
    state = PartialState()
    optimizer = torch.optim.AdamW(phase.apply(model), fused=True)
    total = phase.epochs * steps
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total))
    )
    if o.compile:
        compile_encoders(model)
    trained = DistributedDataParallel(model) if state.num_processes > 1 else model
    half = torch.autocast(state.device.type, torch.bfloat16, enabled=o.precision == "bf16")
    losses = []
    for epoch in range(phase.epochs):
        trained.train()
        for batch in batches(epoch):
            batch = batch.to(state.device, non_blocking=True)
            with half:
                logits = trained(batch.inputs, len(batch)).logits
                loss = sum(F.cross_entropy(logits[n], batch.targets[n]) for n in model.tasks)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            cosine.step()
            losses.append(loss.detach())
    forget_compiled(model)
    return torch.stack(losses).view(phase.epochs, steps).mean(1).tolist()


def loader_of(model: TransferModel, rows: Rows, batches: TrainBatches, workers: int = 0) -> Epoch:
    """Raw rows through the same collate function as the trainer's."""
    loader: Any = DataLoader(
        NumberedRows(rows, [*model.encoders, *model.tasks]),
        batch_sampler=batches,
        collate_fn=Collate(model.encoders, model.tasks),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=PartialState().device.type == "cuda",
    )

    def epoch_of(epoch: int) -> Iterable[Batch]:
        batches.epoch = epoch
        return loader

    return epoch_of
