"""Trained on whole rows and tested on parts of them, and the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmtransfer.registry import fusions
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

WHOLE = ("a", "b")


def rows(count: int, seed: int, kept: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Three kinds that either column tells apart; the rows take turns in what they have."""
    rng, centres = np.random.default_rng(seed), 4 * np.eye(3)
    found = []
    for i in range(count):
        values = {name: rng.normal(centres[i % 3], 1) for name in WHOLE}
        present = kept[i // 3 % len(kept)]
        row: dict[str, Any] = {n: v if n in present else None for n, v in values.items()}
        found.append(row | {"kind": "xyz"[i % 3]})
    return found


def trained(fusion: str, kept: list[tuple[str, ...]], *methods: str) -> Trainer:
    train = rows(120, 0, kept)
    encoders = dict.fromkeys(WHOLE, "mlp?shape=[3]&widths=[8]")
    model = build_model(encoders, {"kind": "classification"}, train, fusion, 16, seed=0)
    strategy = build_strategy("full", methods, epochs=20, lr=1e-2, encoder_lr=1e-2)
    options = TrainingOptions(batch_size=24, progress=False, track=[])
    trainer = Trainer(model, train, None, strategy, options)
    trainer.fit()
    return trainer


def accuracy(trainer: Trainer, kept: tuple[str, ...]) -> float:
    return float(trainer.evaluate(rows(150, 1, [kept]))["kind"]["accuracy"])


@pytest.mark.parametrize("fusion", fusions.names())
def test_a_model_of_whole_rows_knows_parts_of_them(fusion: str) -> None:
    trainer = trained(fusion, [WHOLE], "modality_dropout")
    assert min(accuracy(trainer, (name,)) for name in WHOLE) > 0.85
    trainer.close()


@pytest.mark.parametrize("fusion", fusions.names())
def test_a_model_of_parts_knows_whole_rows(fusion: str) -> None:
    """Two of three rows that it learned from lack one."""
    trainer = trained(fusion, [("a",), ("b",), WHOLE])
    whole = accuracy(trainer, WHOLE)
    assert whole > 0.85
    trainer.close()
