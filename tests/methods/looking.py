"""Methods by hand, outside of the loop: what they look at, and batches whose scale is known."""

from __future__ import annotations

from typing import Any

import torch

from mmtransfer.data.collate import Collate
from mmtransfer.features import Batch
from mmtransfer.model import TransferModel
from mmtransfer.training.look import LookAtData
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy

from .conftest import TASKS, numbers

ENCODERS = dict.fromkeys("ab", "mlp?shape=[3]&widths=[6]")


def small_model(seed: int = 0, **options: Any) -> TransferModel:
    """Two encoders of one hidden layer, and the tasks `kind` (3 classes) and `good` (2)."""
    return build_model(ENCODERS, TASKS, numbers(), "concat", 8, seed=seed, **options)


def looking(model: TransferModel, rows: list[dict], source: Any = None) -> LookAtData:
    """At these training rows, and rows of the source."""
    options = TrainingOptions(progress=False, evaluation_batch_size=5)
    further = {} if source is None else {"source": source}
    strategy = Strategy([Phase(1, 1e-3, 1e-3)])
    trainer = Trainer(model, rows, None, strategy, options, further=further)
    return LookAtData(model, trainer.data, trainer.accelerator)


def batch_of(model: TransferModel, rows: list[tuple[int, dict]]) -> Batch:
    """A step that consists of one batch, of rows with their numbers."""
    batch = Collate(model.encoders, model.tasks)([(i, dict(row)) for i, row in rows])
    batch.real = (batch.index >= 0).sum().float()
    batch.counts = {
        n: task.loss_weight(batch.targets[n]).sum().clamp_min(1) for n, task in model.tasks.items()
    }
    return batch


def losses_of(model: TransferModel, batch: Batch, outputs: Any) -> torch.Tensor:
    """Fills in `outputs.losses`; -> their sum, which is what `on_loss` gets."""
    outputs.losses = {
        n: t.weight * t.loss(outputs.logits[n], batch.targets[n]).sum() / batch.counts[n]
        for n, t in model.tasks.items()
    }
    return torch.stack(list(outputs.losses.values())).sum()
