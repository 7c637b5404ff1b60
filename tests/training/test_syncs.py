"""A training step leaves the host free to go ahead: it never waits for a value of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtransfer.data.collate import Collate
from mmtransfer.features import Batch
from mmtransfer.fusion.base import build_fusion
from mmtransfer.methods.base import build_method
from mmtransfer.methods.modality_dropout import ModalityDropout
from mmtransfer.model import ON_DEMAND
from mmtransfer.registry import fusions
from mmtransfer.testing import ForbidSyncs, random_features
from mmtransfer.training.optimisation import Optimisation
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import make_accelerator
from mmtransfer.transfer.base import Phase, Strategy

TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
TASKS = {
    "product": {"name": "classification", "class_weights": "balanced"},
    "category": {"name": "classification", "label_smoothing": 0.1},
}

BLENDING = {"name": "gradient_blending", "share": 0.3, "every": 1}


def step(rows: list[Any], parts: int, phase: Phase, *methods: Any, **options: Any) -> None:
    """One step that is not the first, over rows of which some lack modalities or labels."""
    model = build_model(TINY, TASKS, rows)
    chosen = TrainingOptions(progress=False, **options)
    accelerator = make_accelerator(chosen, None)
    strategy = Strategy([phase], [ModalityDropout(0.3), *map(build_method, methods)])
    model.provide(strategy.needs & set(ON_DEMAND))
    for method in strategy.methods:
        method.build(model)
    training = Optimisation(model, phase.apply(model), phase, 9, strategy, chosen, accelerator)
    collate = Collate(model.encoders, model.tasks, methods=strategy.methods)
    size = len(rows) // parts
    window: list[Batch] = [
        collate([(i, dict(rows[i])) for i in range(k * size, (k + 1) * size)]) for k in range(parts)
    ]
    assert any(len(batch.inputs["audio"].rows) < size for batch in window)
    counts = training._labelled_rows(window)  # of batches that the host still has
    training._labelled_rows = lambda window: counts  # type: ignore[method-assign]
    model.train()
    try:
        training.step(window, 1)
        with ForbidSyncs():
            training.step(window, 2)
    finally:
        training.release()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("on_nan", ["raise", "skip"])
def test_full_tuning(products: Any, precision: str, parts: int, on_nan: str) -> None:
    phase = Phase(1, 1e-3, 1e-4)
    step(products["train"][:8], parts, phase, precision=precision, on_nan=on_nan)


def test_partial_tuning(products: Any) -> None:
    step(products["train"][:8], 1, Phase(1, 1e-3, 1e-4, top_stages=1))


@pytest.mark.parametrize(
    "method", ["auxiliary_heads", "ogm_ge", "agm", "mmpareto", BLENDING], ids=str
)
def test_methods_of_balance(products: Any, method: Any) -> None:
    step(products["train"][:8], 2, Phase(1, 1e-3, 1e-4), method)


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
def test_methods_that_train_something(products: Any, on_nan: str) -> None:
    step(products["train"][:8], 2, Phase(1, 1e-3, 1e-4), "uncertainty", on_nan=on_nan)


@pytest.mark.parametrize("name", fusions.names())
def test_fusions(name: str) -> None:
    widths = {"audio": 4, "image": 3, "text": 5}
    fusion = build_fusion(name, widths, 8).train()
    head = fusion.head(lambda width: torch.nn.Linear(width, 3))
    given = random_features(widths, 6, torch.Generator().manual_seed(0))
    with ForbidSyncs():
        fusion.decide(head, fusion(given)).sum().backward()
