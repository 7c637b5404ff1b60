"""What methods see of model and data before training begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from mmtransfer.data.collate import Collate
from mmtransfer.data.rows import NumberedRows, Rows, check_rows
from mmtransfer.data.samplers import EvaluationBatches
from mmtransfer.features import Batch
from mmtransfer.methods.base import Observed
from mmtransfer.model import TransferModel
from mmtransfer.tasks.base import Task
from mmtransfer.training.data import TrainingData


class LookAtData:
    """The splits of a run for `Method.begin` (see `mmtransfer.methods.base.Look`)."""

    def __init__(self, model: TransferModel, data: TrainingData, accelerator: Accelerator) -> None:
        self.model, self.data, self.accelerator = model, data, accelerator

    @property
    def steps(self) -> int:
        return self.data.steps * sum(phase.epochs for phase in self.data.strategy.phases)

    def batches(self, split: str) -> Iterator[Batch]:
        return self._of(split, self.data.mixed_loader(split))

    def unstored(self, split: str, size: int | None = None) -> Iterator[Batch]:
        tasks = self.model.tasks if split != "unlabelled" else {}
        for batch in self._loader(split, self.data.splits[split], self.model, tasks, size):
            yield batch.to(self.accelerator.device, non_blocking=True)

    def observe(self, split: str, model: TransferModel | None = None) -> Observed:
        """Raises `ValueError` if another model reads columns that the split does not have."""
        if model is None:
            loader = self.data.evaluation_loader(split, self.data.splits[split])
            return observed(self.model, self._of(split, loader), self.accelerator)
        model = model.to(self.accelerator.device)
        rows = self.data.splits[split]
        check_rows(rows, model.encoders, {}, split)
        loader = self._loader(split, rows, model, {})
        moved = (batch.to(self.accelerator.device) for batch in loader)
        return observed(model, moved, self.accelerator)

    def _of(self, split: str, loader: Any) -> Iterator[Batch]:
        for (batch,) in self.data.windows(split, loader, 1):
            yield batch.to(self.accelerator.device, non_blocking=True)

    def _loader(
        self,
        split: str,
        rows: Rows,
        model: TransferModel,
        tasks: Mapping[str, Task],
        size: int | None = None,
    ) -> Any:
        options, state = self.data.options, self.accelerator
        batches = EvaluationBatches(
            len(rows),
            size or options.evaluation_batch_size,
            state.process_index,
            state.num_processes,
        )
        known = self.data.tasks_of(split, rows) if tasks else ()
        return DataLoader(
            NumberedRows(rows, [*model.encoders, *known]),  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=Collate(model.encoders, tasks, split=split, on_error=options.on_error),
            num_workers=options.workers,
            generator=torch.Generator(),
        )


def observed(model: TransferModel, batches: Iterator[Batch], accelerator: Accelerator) -> Observed:
    """Outputs of all batches, of all processes, in row order, without fillers, on the CPU."""
    names = list(model.encoders)
    training, found = model.training, []
    model.eval()
    with torch.no_grad():  # not inference mode: what is kept will meet gradients
        for batch in batches:
            with accelerator.autocast():
                features = {n: model.encode(n, batch.inputs.get(n), len(batch)) for n in names}
                fused = model.fusion(dict(features))
                logits = {n: model.fusion.decide(h, fused) for n, h in model.heads.items()}
            real = batch.index >= 0
            parts = {
                "index": {"": batch.index},
                "logits": logits,
                "fused": {"": fused.vector},
                "features": {n: f.pooled() for n, f in features.items()},
                "present": {n: f.present for n, f in features.items()},
                "targets": batch.targets,
            }
            found.append({k: {n: t[real].cpu() for n, t in of.items()} for k, of in parts.items()})
    model.train(training)
    everywhere = [part for parts in gather_object([found]) for part in parts]
    order = torch.cat([part["index"][""] for part in everywhere]).argsort()

    def joined(kind: str) -> dict[str, torch.Tensor]:
        whole = {n: torch.cat([p[kind][n] for p in everywhere])[order] for n in everywhere[0][kind]}
        return {n: t.float() if t.is_floating_point() else t for n, t in whole.items()}

    return Observed(
        joined("logits"),
        joined("fused")[""],
        joined("features"),
        joined("present"),
        joined("targets"),
    )
