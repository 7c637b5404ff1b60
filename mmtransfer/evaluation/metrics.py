"""Outputs of a model over a whole data set, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.tasks.base import Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@dataclass
class Collected:
    """Logits and targets of all rows, per task, in row order; weights (N, M) if there are any."""

    logits: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: Tensor | None = None


def collect(
    model: Callable[[Batch], Outputs], batches: Iterable[Batch], device: torch.device
) -> Collected:
    """Outputs of all batches, of all processes, in row order, without fillers, on the CPU."""
    kept = []
    with torch.inference_mode():
        for batch in batches:
            batch = batch.to(device, non_blocking=True)
            out = model(batch)
            kept.append((batch.index, out.logits, batch.targets, out.weights))
    index = torch.cat([k[0] for k in kept]).cpu()
    real = index >= 0

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).cpu()[real]

    logits = {name: join([k[1][name] for k in kept]).float() for name in kept[0][1]}
    targets = {name: join([k[2][name] for k in kept]) for name in kept[0][2]}
    weights = [k[3] for k in kept if k[3] is not None]
    mine = (index[real], logits, targets, join(weights).float() if weights else None)
    parts = gather_object([mine])  # the one collective of an evaluation
    order = torch.cat([part[0] for part in parts]).argsort()
    return Collected(
        {name: torch.cat([part[1][name] for part in parts])[order] for name in logits},
        {name: torch.cat([part[2][name] for part in parts])[order] for name in targets},
        torch.cat([part[3] for part in parts])[order] if weights else None,
    )


def compute_metrics(tasks: Mapping[str, Task], collected: Collected) -> dict[str, dict[str, float]]:
    """`{task: {metric: value, "loss": .., "rows": ..}}` over the labelled rows of each task.

    A task without any labelled row gets only `rows: 0`.  Metrics that so few rows do not have (R2
    of a single one) are left out.
    """
    results: dict[str, dict[str, float]] = {}
    for name, task in tasks.items():
        targets = collected.targets[name]
        labelled = task.labelled(targets)
        rows = int(labelled.sum())
        results[name] = {"rows": rows}
        if rows:
            logits, truth = collected.logits[name][labelled].float(), targets[labelled]
            metrics = task.metrics()
            metrics.update(logits, truth)
            with torch.no_grad():
                loss = task.loss(logits, truth).double().sum()
                loss /= task.loss_weight(truth).double().sum()
            results[name] |= computed(metrics)
            results[name]["loss"] = float(loss)
    return results


def computed(metrics: MetricCollection) -> dict[str, float]:
    """Values by name; a metric that raises `ValueError` on few rows takes no other one along."""
    try:
        return {name: float(value) for name, value in metrics.compute().items()}
    except ValueError:
        found = {}
        for name, metric in metrics.items():
            with suppress(ValueError):
                found[name] = float(metric.compute())
        return found
