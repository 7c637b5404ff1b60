"""Temperatures that make the probabilities of a saved model mean what they say."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mmtransfer.encoders.numbers import check_positive
from mmtransfer.registry import nearest

FILE = "temperature.json"


@dataclass(frozen=True)
class Temperature:
    """By task, what its logits are divided by (Guo et al., ICML 2017); others stay as they are.

    Part of a model: `predict` gives calibrated probabilities; labels do not change.  Beside the
    weights it is `temperature.json`; see `mmtransfer.evaluation.calibration` for how it is fitted.
    Raises `ValueError` for a temperature that is no number above zero.
    """

    by_task: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.by_task.items():
            check_positive(f"the temperature of task {name!r}", value)

    def apply(self, name: str, logits: Tensor) -> Tensor:
        """Logits (B, C) of a task whose softmax is calibrated."""
        return logits / self.by_task[name] if name in self.by_task else logits

    def check(self, tasks: Collection[str]) -> None:
        """Raise `ValueError` for a temperature of a task that the model does not have."""
        for name in self.by_task:
            if name not in tasks:
                raise ValueError(f"a temperature for unknown task {name!r}.{nearest(name, tasks)}")

    def save(self, model: Path) -> Path:
        """Write it beside a saved model, or remove the one there if it names no task.

        Raises `FileNotFoundError` where there is no model, `ValueError` if it is not for its tasks.
        """
        config, path = model / "config.json", model / FILE
        if not config.is_file():
            raise FileNotFoundError(f"{model} is no directory of a saved model: no config.json")
        self.check(json.loads(config.read_text())["tasks"])
        if self.by_task:
            path.write_text(json.dumps(self.by_task, indent=2) + "\n")
        else:
            path.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, model: Path) -> Temperature:
        """That of a saved model; without a file it names no task."""
        path = model / FILE
        found = json.loads(path.read_text()) if path.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold a temperature by task, found {found!r}")
        return cls(found)
