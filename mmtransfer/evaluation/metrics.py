"""Metrics of collected logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtransfer.tasks.base import Task


@dataclass
class Collected:
    """Logits and targets of all rows, per task, in row order; weights (N, M) if there are any."""

    logits: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: Tensor | None = None


def compute_metrics(tasks: Mapping[str, Task], collected: Collected) -> dict[str, dict[str, float]]:
    """`{task: {metric: value, "loss": .., "rows": ..}}` over the labelled rows of each task.

    A task without any labelled row gets only `rows: 0`.
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
                loss = task.loss(logits, truth).double().mean()
            results[name] |= {k: float(v) for k, v in metrics.compute().items()}
            results[name]["loss"] = float(loss)
    return results
