"""A small model of three modalities, and rows that are drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import build_encoder
from mmtransfer.features import Features
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import Classification

MODALITIES = ("image", "sound", "text")


def drawn_rows(count: int, seed: int, noise: str = "") -> list[dict[str, Any]]:
    """Rows whose modalities each say the label, but that which is noise; some values missing."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    rows: list[dict[str, Any]] = [{"label": "abc"[t]} for t in targets]
    for name in MODALITIES:
        values = torch.randn(count, 4, generator=generator)
        missing = torch.rand(count, generator=generator) < 0.1
        if name != noise:
            values[:, :3] += 1.5 * torch.nn.functional.one_hot(targets, 3)
        for row, value, gone in zip(rows, values, missing, strict=True):
            row[name] = None if gone else value.tolist()
    return rows


def untrained() -> TransferModel:
    torch.manual_seed(0)
    encoders = {name: build_encoder("mlp", shape=[4], widths=[8]) for name in MODALITIES}
    joined = build_fusion("concat", dict.fromkeys(MODALITIES, 8), 8)
    return TransferModel(encoders, joined, {"label": Classification(list("abc"))}).eval()


def fit(model: TransferModel, rows: list[dict[str, Any]], steps: int = 150) -> TransferModel:
    """Train fusion and head on all rows at once, modalities left out at random."""
    batch = Collate(model.encoders, model.tasks)(list(enumerate(rows)))
    with torch.no_grad():
        features = {n: model.encode(n, batch.inputs.get(n), len(rows)) for n in model.encoders}
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)
    for _ in range(steps):
        kept = {
            n: Features(f.tokens, f.mask & (torch.rand(len(rows), 1, generator=generator) < 0.7))
            for n, f in features.items()
        }
        logits = model(kept, len(rows)).logits["label"]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[dict[str, Any]]]:
    return drawn_rows


@pytest.fixture(scope="session")
def small_model() -> Callable[[], TransferModel]:
    return untrained


@pytest.fixture(scope="session")
def trained() -> TransferModel:
    return fit(untrained(), drawn_rows(400, 0))


@pytest.fixture(scope="session")
def confused_by_noise() -> TransferModel:
    """Trained where the text says nothing."""
    return fit(untrained(), drawn_rows(2000, 0, noise="text"))


@pytest.fixture(scope="session")
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (300, 5) and targets (300,); class 3 has no rows, but is predicted; 4 neither."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(3, (300,), generator=generator)
    logits = torch.randn(300, 5, generator=generator)
    logits += 1.5 * torch.nn.functional.one_hot(targets, 5)
    logits[:, 4] -= 9
    return logits, targets
