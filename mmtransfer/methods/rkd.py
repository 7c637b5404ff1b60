"""Distances and angles between samples are taken over from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.methods.start import check_not_negative
from mmtransfer.methods.teaching import Answers, load_teacher
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method


@register_method("rkd")
class RKD(Method):
    """Relational knowledge distillation (Park et al., CVPR 2019).

    Huber losses between model and teacher of the distances of all pairs of fused vectors, over
    their mean, and of the cosines of the angles of all triples.  The widths may differ.  Pairs and
    triples are those of a micro-batch, so that accumulation and processes change them.

    teacher: directory of a saved `TransferModel` that reads the same columns
    Raises `FileNotFoundError` for a teacher that is missing.
    """

    needs = ("fused", "numbered_rows", "unmixed_rows")

    def __init__(self, teacher: str, distance: float = 25.0, angle: float = 50.0) -> None:
        check_not_negative("rkd", distance=distance, angle=angle)
        self.teacher, self.distance, self.angle = str(teacher), distance, angle
        self._teacher: TransferModel | None = None
        self._answers = Answers()

    def build(self, model: TransferModel) -> None:
        self._teacher = load_teacher("rkd", self.teacher)

    def begin(self, model: TransferModel, look: Look) -> None:
        self._answers = Answers({"fused": look.observe("train", self._teacher).fused})
        self._teacher = None

    def state_dict(self) -> dict[str, Any]:
        return {"answers": self._answers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._answers, self._teacher = Answers(state["answers"]), None

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert outputs.fused is not None
        real = batch.index >= 0
        own, other = outputs.fused[real].float(), self._answers.of("fused", batch)[real]
        if len(own) < 2:
            return loss
        loss = loss + self.distance * F.smooth_l1_loss(distances(own), distances(other))
        return loss + self.angle * F.smooth_l1_loss(angles(own), angles(other))


def distances(x: Tensor) -> Tensor:
    """(B, D) -> (B, B) Euclidean distances over their mean; that of a row to itself is 0."""
    # Not cdist, whose gradient at 0 is no number on some devices.
    squared = (x.unsqueeze(0) - x.unsqueeze(1)).square().sum(2)
    found = torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)
    apart = found > 0
    return found / (found.sum() / apart.sum().clamp_min(1)).clamp_min(1e-12)


def angles(x: Tensor) -> Tensor:
    """(B, D) -> (B, B, B) cosines of the angles at the first between the other two; 0 if equal."""
    away = x.unsqueeze(0) - x.unsqueeze(1)  # (B, B, D)
    squared = away.square().sum(2, keepdim=True)
    # Equal rows, as far as rounding lets one tell, have no direction, and no gradient towards one.
    apart = squared > 1e-10 * x.detach().square().sum(1).max()
    away = torch.where(apart, away, 0) / torch.where(apart, squared, 1).sqrt()
    return torch.bmm(away, away.transpose(1, 2))
