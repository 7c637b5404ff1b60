"""A student learns from a teacher's soft answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.teaching import (
    Answers,
    check_temperature,
    divergence,
    load_teacher,
    mean_over_rows,
    shared_tasks,
)
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("distillation")
class Distillation(Method):
    """Knowledge distillation from a saved model (Hinton, Vinyals & Dean, 2015).

    Of each task that both have, `1 - share` of its loss, and `share` of `T^2 KL(teacher || model)`
    at temperature T, the mean over all rows: unlabelled ones learn from the teacher too.  The
    teacher answers once for each row as it is in the data, without augmentation.

    teacher: directory of a saved `TransferModel` that reads the same columns
    Raises `FileNotFoundError` or `ValueError` for a teacher that is missing or does not fit.
    """

    needs = ("numbered_rows", "unmixed_rows")

    def __init__(self, teacher: str, share: float = 0.5, temperature: float = 4.0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share of distillation must lie in [0, 1], found {share}")
        check_temperature("distillation", temperature)
        self.teacher, self.share, self.temperature = str(teacher), share, temperature
        self._teacher: TransferModel | None = None
        self._answers = Answers()

    def build(self, model: TransferModel) -> None:
        self._teacher = load_teacher("distillation", self.teacher)
        shared_tasks("distillation", model, self._teacher)

    def begin(self, model: TransferModel, look: Look) -> None:
        assert self._teacher is not None
        logits = look.observe("train", self._teacher).logits
        names = shared_tasks("distillation", model, self._teacher)
        self._answers, self._teacher = Answers({n: logits[n] for n in names}), None

    def state_dict(self) -> dict[str, Any]:
        return {"answers": self._answers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._answers, self._teacher = Answers(state["answers"]), None

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        for name in self._answers:
            answers = self._answers.of(name, batch)
            rows = divergence(outputs.logits[name], answers, self.temperature)
            taught = model.tasks[name].weight * mean_over_rows(rows, batch)
            loss = loss + self.share * (self.temperature**2 * taught - outputs.losses[name])
        return loss
