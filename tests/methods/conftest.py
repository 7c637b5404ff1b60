"""Small models on lists of numbers, on which methods of balance are quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmtransfer.methods.base import Method, build_method
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy

TASKS = {"kind": "classification", "good": "classification"}


class Look(Method):
    """Remembers the gradients of each step, as those before it in the list have left them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor | None]] = []

    def on_gradients(self, model, again):
        found = {n: p.grad for n, p in model.named_parameters()}
        self.seen.append({n: None if g is None else g.clone() for n, g in found.items()})


def numbers(modalities: str = "ab", count: int = 24, missing: bool = True) -> list[dict[str, Any]]:
    """Rows of lists of numbers and two targets, with gaps in all of them."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        kind = "xyz"[i % 3]
        row: dict[str, Any] = {n: rng.normal("xyz".index(kind), 1, 3) for n in modalities}
        rows.append(row | {"kind": kind, "good": bool(i % 2)})
    for i, row in enumerate(rows if missing else ()):
        row[modalities[i % len(modalities)]] = None if i % 5 == 1 else row[modalities[0]]
        row["good"] = None if i % 4 == 0 else row["good"]
    return rows


@pytest.fixture(scope="session")
def fit() -> Callable[..., tuple[Trainer, Look]]:
    """Trains a model of one hidden layer per modality; -> the trainer, and what it looked at."""

    def run(
        spec: Any = None,
        rows: list[dict[str, Any]] | None = None,
        fusion: Any = "concat",
        phase: Phase | None = None,
        output: Any = None,
        extra: tuple[Method, ...] = (),
        resume: bool = False,
        further: Any = None,
        **options: Any,
    ) -> tuple[Trainer, Look]:
        rows = numbers() if rows is None else rows
        names = [n for n in rows[0] if n not in TASKS]
        encoders = dict.fromkeys(names, "mlp?shape=[3]&widths=[6]")
        model = build_model(encoders, TASKS, rows, fusion, 8, seed=0)
        look = Look()
        methods = [] if spec is None else [build_method(spec)]
        strategy = Strategy([phase or Phase(1, 1e-2, 1e-2)], [*methods, look, *extra])
        chosen = {"batch_size": 12, "progress": False, "track": [], **options}
        trainer = Trainer(
            model, rows, None, strategy, TrainingOptions(**chosen), output, further=further
        )
        trainer.fit(resume)
        return trainer, look

    return run
