"""A model trained for a cell."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from measuring import shared_directory

from mmtransfer import (
    Encoder,
    Strategy,
    Trainer,
    TrainingOptions,
    TransferModel,
    build_strategy,
)
from mmtransfer.data.rows import Rows
from mmtransfer.methods.base import build_method
from mmtransfer.training.run import build_model
from mmtransfer.transfer.adapters import Adapter
from transferring.retail import Given, Retail, image_encoder

WIDTH = 256  # of the fused vector

pretrained = cache(image_encoder)
retail = cache(Retail)


def photo_encoder() -> Encoder:
    """A MobileNetV2 of one's own; its weights are read once per process."""
    return deepcopy(pretrained(shared_directory()))


def given_encoders(data: Retail, inputs: Mapping[str, str]) -> dict[str, Encoder]:
    """Encoders for the columns that hold vectors."""
    arrays = {column: data.array("train", name) for column, name in inputs.items()}
    return {n: Given(a.shape[1]) for n, a in arrays.items() if a.dtype.kind == "f"}


def fit(
    encoders: Mapping[str, Encoder | str],
    rows: Rows,
    strategy: Strategy,
    options: TrainingOptions,
    tasks: Mapping[str, Any] | None = None,
    further: Mapping[str, Rows] | None = None,
    fusion: Any = "concat",
) -> Trainer:
    """Train a new model, with the weights of the last step; the caller closes it.

    further: rows "unlabelled" of the target and labelled ones of the "source"
    """
    chosen = tasks or {"product": "classification"}
    model = build_model(encoders, chosen, rows, fusion, WIDTH, options.seed)
    return trained(model, rows, strategy, options, further)


def trained(
    model: TransferModel,
    rows: Rows,
    strategy: Strategy,
    options: TrainingOptions,
    further: Mapping[str, Rows] | None = None,
) -> Trainer:
    trainer = Trainer(model, rows, None, strategy, options, further=further)
    trainer.fit()
    return trainer


def strategy_of(
    spec: Mapping[str, Any], only: str | None = None, among: tuple[str, ...] = ()
) -> Strategy:
    """The strategy of a member's `strategy` and `methods`.

    only: the one modality of `among` whose encoder trains
    """
    asked = dict(spec["strategy"])
    if only is not None and "encoder_lr" in asked:
        asked["encoder_lr"] = {only: asked["encoder_lr"]}
    strategy = build_strategy(asked, [build_method(m) for m in spec.get("methods", ())])
    adapter: Adapter | None = strategy.adapters.get("all")
    if adapter is not None and only is not None:
        strategy.adapters |= {name: None for name in among if name != only}
    return strategy


def accuracy(trainer: Trainer, rows: Rows, task: str = "product") -> float:
    return float(trainer.evaluate(rows, "test")[task]["accuracy"])


def training_options(work: Path, seed: int, **options: Any) -> TrainingOptions:
    """Without anything to see, and with one feature store for all cells."""
    return TrainingOptions(progress=False, seed=seed, cache=str(work / "cache"), **options)
