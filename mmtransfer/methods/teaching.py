"""What methods share in which a teacher has answered for each training row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.features import Batch
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest


class Answers:
    """Something of each training row, `{name: (N, ...)}`, looked up for the rows of a batch."""

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self._values = dict(values or {})

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._values)

    def of(self, name: str, batch: Batch) -> Tensor:
        """(B, ...); fillers get what belongs to some row."""
        found = self._values[name]
        if found.device != batch.index.device:
            found = self._values[name] = found.to(batch.index.device)
        return found[batch.index.clamp_min(0)]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in self._values.items()}


def load_teacher(method: str, directory: str) -> TransferModel:
    """A saved model, frozen.  Raises `FileNotFoundError` where there is none."""
    if not Path(directory).expanduser().is_dir():
        raise FileNotFoundError(f"the teacher of {method}, {directory!r}, is no directory")
    model = TransferModel.from_pretrained(str(Path(directory).expanduser()))
    return model.requires_grad_(False)


def shared_tasks(method: str, model: TransferModel, teacher: TransferModel) -> list[str]:
    """Tasks of both.  Raises `ValueError` if there is none, or one has other classes."""
    names = [name for name in model.tasks if name in teacher.tasks]
    if not names:
        hint = nearest(next(iter(model.tasks)), teacher.tasks)
        raise ValueError(
            f"{method}: the teacher knows none of the tasks {', '.join(model.tasks)}.{hint}"
        )
    for name in names:
        own, other = (getattr(m.tasks[name], "classes", None) for m in (model, teacher))
        if own != other:
            raise ValueError(
                f"{method}: the teacher's classes of {name!r} are {other}, the model's {own}; "
                "give the task of one the classes of the other"
            )
    return names


def divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Logits (B, C) of student and teacher -> (B,) KL(teacher || student), both softened."""
    student = (logits.float() / temperature).log_softmax(-1)
    teacher = (answers.float() / temperature).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def mean_over_rows(values: Tensor, batch: Batch, counted: Tensor | None = None) -> Tensor:
    """(B,) -> their mean over the rows of the step, where what does not count (B,) is 0."""
    assert batch.real is not None
    real = batch.index >= 0
    if counted is not None:
        real = real & counted
    return torch.where(real, values, 0).sum() / batch.real


def check_temperature(method: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature of {method} must be greater than 0, found {temperature}")
