"""Features of a teacher, as far as a linear map of one's own can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import check_not_negative
from mmtransfer.methods.teaching import Answers, load_teacher, mean_over_rows
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest, register_method


@register_method("fitnet")
class FitNet(Method):
    """Feature distillation with a learned regressor (FitNets, Romero et al., ICLR 2015).

    `weight` times the mean square of the difference between the teacher's pooled features of each
    modality, standardised over the training rows, and a linear map of the model's own, which is
    trained along: the mean over the rows, in which an absent modality counts 0, summed over
    modalities.  The teacher answers once for each row, without augmentation.

    teacher: directory of a saved `TransferModel` that reads the same columns
    Raises `FileNotFoundError` or `ValueError` for a teacher that is missing or does not fit.
    """

    needs = ("features", "trained_encoders", "numbered_rows", "unmixed_rows")

    def __init__(self, teacher: str, weight: float = 1.0) -> None:
        check_not_negative("fitnet", weight=weight)
        self.teacher, self.weight = str(teacher), weight
        self._teacher: TransferModel | None = None
        self._answers = Answers()

    def build(self, model: TransferModel) -> None:
        teacher = self._teacher = load_teacher("fitnet", self.teacher)
        shared = [name for name in model.encoders if name in teacher.encoders]
        if not shared:
            hint = nearest(next(iter(model.encoders)), teacher.encoders)
            raise ValueError(
                f"fitnet: the teacher has none of the modalities {', '.join(model.encoders)}.{hint}"
            )
        widths = {n: (model.encoders[n].width, teacher.encoders[n].width) for n in shared}
        self.module = nn.ModuleDict({n: nn.Linear(*width) for n, width in widths.items()})

    def begin(self, model: TransferModel, look: Look) -> None:
        seen, self._teacher = look.observe("train", self._teacher), None
        assert isinstance(self.module, nn.ModuleDict)
        found = {}
        for name in self.module:
            present = seen.present[name]
            if present.any():
                known = seen.features[name][present]
                deviation, mean = torch.std_mean(known, 0, correction=0)
                found[name] = (seen.features[name] - mean) / deviation.clamp_min(1e-6)
                found[f"present/{name}"] = present
        self._answers = Answers(found)

    def state_dict(self) -> dict[str, Any]:
        return {"answers": self._answers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._answers, self._teacher = Answers(state["answers"]), None

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert outputs.features is not None
        assert isinstance(self.module, nn.ModuleDict)
        for name in self._answers:
            if name not in self.module:
                continue
            features = outputs.features[name]
            guess = self.module[name](features.pooled().float())
            rows = (guess - self._answers.of(name, batch)).square().mean(1)
            both = features.present & self._answers.of(f"present/{name}", batch)
            loss = loss + self.weight * mean_over_rows(rows, batch, both)
        return loss
