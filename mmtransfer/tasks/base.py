"""The task contract: a head, a loss, predictions and metrics for one target column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmtransfer.registry import Configurable, tasks

if TYPE_CHECKING:  # 60 MB and a second, for runs that need metrics alone
    from torchmetrics import MetricCollection


class Task(Configurable):
    """What is learned from one target column.

    `weight` scales its loss among the tasks of a model.  Rows whose target is `None` or NaN are
    unlabelled: they get the ignore value, count for nothing and are never an error.
    """

    weight: float = 1.0
    #: the metric, larger is better, by which the best epoch is chosen
    score: str = "accuracy"

    def fit(self, values: Sequence[Any]) -> None:
        """Learn from the training column what the task needs (its classes, say)."""

    def head(self, width: int) -> nn.Module:
        """A module (B, width) -> logits (B, C)."""
        raise NotImplementedError

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Raw targets -> (B,) tensor, the ignore value where unlabelled; `ValueError` if bad."""
        raise NotImplementedError

    def labelled(self, targets: Tensor) -> Tensor:
        """(B,) bool: rows that count."""
        raise NotImplementedError

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row (B,), zero where unlabelled."""
        raise NotImplementedError

    def loss_weight(self, targets: Tensor) -> Tensor:
        """(B,) float: what each row counts in the mean of the losses, zero where unlabelled.

        The loss of a step is the sum of `loss` over the sum of this.
        """
        return self.labelled(targets).float()

    def predict(self, logits: Tensor) -> list[dict[str, Any]]:
        """One dictionary of plain values per row."""
        raise NotImplementedError

    def metrics(self) -> MetricCollection:
        """Updated with the logits and targets of labelled rows."""
        raise NotImplementedError


def build_task(spec: str | Mapping[str, Any] | Task, **options: Any) -> Task:
    """A task by name, as `{"name": ..., option: value}`, or as it is."""
    if isinstance(spec, Task):
        return spec
    task: Task = tasks.build(spec, **options)
    return task
