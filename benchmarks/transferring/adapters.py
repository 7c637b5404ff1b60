"""LoRA on the 6-layer BERT: the product by its shelf label, against full fine-tuning.

All training rows that have a text, and all such test rows however many the others are judged by;
MiniLM with its pretrained weights, products as classes.  Beside the accuracy: the share of the
encoder's parameters that LoRA trains, and the largest difference between the logits with adapters
and with adapters merged into the weights, as a share of the largest logit.  Rates were chosen on
validation rows and a fifth of the training rows, which then were not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peers import minilm

from mmtransfer import Encoder, TransferModel, build_encoder
from mmtransfer.data.collate import Collate
from mmtransfer.data.rows import Rows
from mmtransfer.transfer.adapters import merge_adapters
from transferring.cells import Cell, Figures
from transferring.report import Summary
from transferring.training import accuracy, fit, retail, strategy_of, training_options

BASELINES = {"accuracy": "full"}
#: limits, in shares: of accuracy, of the encoder's parameters, and of merging
LOSS, SHARE, MERGED = 0.01, 0.02, 1e-5
SETTING = "label texts"
EPOCHS = 4
FOLDS = 5  # options are judged by one of so many parts of the training rows, too
BATCH, MERGED_ROWS = 64, 256
#: rates chosen on held-out rows: `--tune` tries those of GRID again
MEMBERS: dict[str, dict[str, Any]] = {
    "full": {"strategy": {"name": "full", "encoder_lr": 1e-4}},
    "lora": {"strategy": {"name": "lora", "encoder_lr": 2e-3, "merge": False}},
}
GRID: dict[str, tuple[float, ...]] = {
    "full": (1e-4, 3e-4, 1e-3),
    "lora": (1e-3, 2e-3, 3e-3),
}


@cache
def pretrained() -> Encoder:
    return build_encoder(f"hf:{minilm()}")


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """All members with all seeds, or the values to be tried."""
    epochs, found = max(1, round(EPOCHS / shorter)), []
    for seed in seeds:
        for name, member in MEMBERS.items():
            spec = {**member, "epochs": epochs}
            if not tune:
                found.append(Cell("adapters", SETTING, name, seed, spec))
                continue
            for rate in GRID[name]:
                tried = spec | {"strategy": member["strategy"] | {"encoder_lr": rate}}
                label = f"{name} encoder_lr={rate:g}"
                found.append(Cell("adapters", SETTING, label, seed, tried, "validation"))
    return found


def run(cell: Cell, work: Path) -> Figures:
    """Accuracy; with adapters also what they train and what merging changes."""
    data, spec = retail(work), cell.spec
    train = with_text(data.rows("train", {"text": "label"}, range(data.size("train"))))
    rows = with_text(data.rows(cell.judged, {"text": "label"}, range(data.size(cell.judged))))
    if cell.judged == "validation":  # of which there are few
        fold = range(cell.seed % FOLDS, len(train), FOLDS)
        rows += [train[i] for i in fold]
        train = [row for i, row in enumerate(train) if i not in fold]
    strategy = strategy_of({"strategy": spec["strategy"] | {"epochs": spec["epochs"]}}, "text")
    options = training_options(work, cell.seed, order="length")
    trainer = fit({"text": deepcopy(pretrained())}, train, strategy, options)
    try:
        figures: Figures = {"accuracy": accuracy(trainer, rows)}
        counts = trainer.counts["text"]
        figures["share"] = counts["trained"] / counts["parameters"]
        if strategy.adapters:
            before = logits(trainer.model, rows[:MERGED_ROWS])
            merge_adapters(trainer.model)
            after = logits(trainer.model, rows[:MERGED_ROWS])
            figures["merged"] = float((after - before).abs().max() / before.abs().max())
        return figures
    finally:
        trainer.close()


def with_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["text"] is not None]


def logits(model: TransferModel, rows: Rows) -> torch.Tensor:
    """(N, C) without bf16, whose rounding would hide what merging changes."""
    collate = Collate(model.encoders, {})
    model.eval()
    with torch.no_grad():
        chunks = [range(i, min(i + BATCH, len(rows))) for i in range(0, len(rows), BATCH)]
        batches = (collate([(i, rows[i]) for i in chunk]) for chunk in chunks)
        return torch.cat([model(b.inputs, len(b)).logits["product"] for b in batches])


def more(results: Sequence[tuple[Cell, Figures]]) -> dict[str, float]:
    """What LoRA trains of the encoder, and the largest difference that merging makes."""
    found = [figures for cell, figures in results if cell.member == "lora"]
    return {name: max(figures[name] for figures in found) for name in ("share", "merged")}


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """A line for each figure that misses its limit."""
    found = more(results) | {"loss": -summary[SETTING]["lora"]["accuracy"]["gain"]}
    limits = {"share": SHARE, "merged": MERGED, "loss": LOSS}
    return [
        f"lora: {name} {found[name]:.3g}, at most {limit:g}"
        for name, limit in limits.items()
        if found[name] > limit
    ]
