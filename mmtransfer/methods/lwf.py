"""Answers on the source tasks stay what they were, on rows of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import check_not_negative
from mmtransfer.methods.teaching import Answers, check_temperature, divergence, mean_over_rows
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("lwf")
class LwF(Method):
    """Learning without forgetting (Li & Hoiem, ECCV 2016).

    `weight` times the divergence, at a temperature, of the answers on tasks of the source from
    those that the model as it came gave for the same row, the mean over the training rows.  Tasks
    of the source are those of which no training row has a label; no row of the source is needed.

    Raises `ValueError` where there is no such task.
    """

    needs = ("numbered_rows", "unmixed_rows")

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        check_not_negative("lwf", weight=weight)
        check_temperature("lwf", temperature)
        self.weight, self.temperature = weight, temperature
        self._answers = Answers()

    def begin(self, model: TransferModel, look: Look) -> None:
        seen = look.observe("train")
        old = [n for n, t in model.tasks.items() if not t.labelled(seen.targets[n]).any()]
        if not old:
            raise ValueError(
                "lwf keeps tasks of the source, of which no training row has a label; the model's "
                f"tasks {', '.join(model.tasks)} all have labels: the source's must be one of them"
            )
        self._answers = Answers({name: seen.logits[name] for name in old})

    def state_dict(self) -> dict[str, Any]:
        return {"answers": self._answers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._answers = Answers(state["answers"])

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        for name in self._answers:
            answers = self._answers.of(name, batch)
            rows = divergence(outputs.logits[name], answers, self.temperature)
            loss = loss + self.weight * mean_over_rows(rows, batch)
        return loss
