"""What methods with an unlabelled target share: which rows are real, and how far the run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method
from mmtransfer.model import TransferModel


class Gradual(Method):
    """Base of methods whose strength follows the progress of the run."""

    def __init__(self) -> None:
        self.step, self.steps = 0, 0

    def begin(self, model: TransferModel, look: Look) -> None:
        self.step, self.steps = 0, look.steps

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.steps = state["step"], state["steps"]

    def on_weights(self, model: TransferModel, step: int) -> None:
        self.step = step

    @property
    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.steps))


def both_sides(batch: Batch, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fused vectors (n, width), which of them are of real rows (n,), the same of the unlabelled."""
    assert batch.unlabelled is not None
    assert outputs.unlabelled is not None
    assert outputs.fused is not None
    assert outputs.unlabelled.fused is not None
    here, there = batch.index >= 0, batch.unlabelled.index >= 0
    return outputs.fused.float(), here, outputs.unlabelled.fused.float(), there


def check_least(what: str, value: float, least: float = 0.0) -> None:
    """Raise `ValueError` for an option below what it may be."""
    if not value >= least:
        raise ValueError(f"{what} must be at least {least:g}, found {value}")
