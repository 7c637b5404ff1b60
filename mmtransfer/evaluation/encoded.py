"""Rows that are encoded once, and what a model decides on them as often as is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from mmtransfer.data.collate import Collate, read_errors
from mmtransfer.data.examples import Examples
from mmtransfer.data.rows import NumberedRows, Rows, check_rows, columns_of, with_label_names
from mmtransfer.data.samplers import GivenBatches
from mmtransfer.evaluation.robustness import by_subset, without
from mmtransfer.features import Features
from mmtransfer.model import TransferModel
from mmtransfer.training.progress import Progress


@dataclass
class Decided:
    """Of N rows, in order, on the CPU: logits (N, C) by task, fused (N, width), weights (N, M)."""

    logits: dict[str, Tensor]
    fused: Tensor
    weights: Tensor | None


def encode_rows(
    model: TransferModel,
    rows: Rows,
    split: str = "",
    batch_size: int = 64,
    on_error: str = "raise",
    progress: bool = False,
) -> tuple[Examples, dict[str, list[int]]]:
    """All N rows as the fusion sees them, and the rows by column whose value is unreadable.

    Only a fusion that uses tokens is given them; else one pooled vector per row and modality is
    kept, which is N * D numbers.  A task whose column the rows lack has no labels.  Columns of
    numbers that datasets knows the names of (ClassLabel) count as these names.
    Raises `ValueError` for columns, values or labels that the model cannot read.
    """
    tasks = {n: t for n, t in model.tasks.items() if n in columns_of(rows)}
    for name, task in tasks.items():
        if all(isinstance(label, str) for label in getattr(task, "classes", None) or ()):
            rows = with_label_names(rows, name)
    check_rows(rows, model.encoders, tasks, split)
    loader: DataLoader[Any] = DataLoader(
        NumberedRows(rows, [*model.encoders, *tasks]),  # type: ignore[arg-type]
        batch_sampler=GivenBatches(list(_chunks(len(rows), batch_size))),
        collate_fn=Collate(model.encoders, model.tasks, split=split, on_error=on_error),
        generator=torch.Generator(),
    )
    unreadable: dict[str, list[int]] = {}
    features: dict[str, list[Features]] = {name: [] for name in model.encoders}
    targets: dict[str, list[Tensor]] = {name: [] for name in model.tasks}
    training = model.training
    model.eval()
    shown = Progress(progress)
    with torch.inference_mode():
        for batch in shown.track(read_errors(loader), f"encoding {split}".strip(), len(loader)):
            for name, numbers in batch.unreadable.items():
                unreadable.setdefault(name, []).extend(numbers)
            moved = batch.to(model.device, non_blocking=True)
            for name in model.encoders:
                found = model.encode(name, moved.inputs.get(name), len(batch))
                kept = found if model.fusion.uses_tokens else found.pool()
                features[name].append(Features(kept.tokens.float(), kept.mask).to("cpu"))
            for name, target in batch.targets.items():
                targets[name].append(target)
    model.train(training)
    joined = {name: _joined(parts) for name, parts in features.items()}
    return Examples(joined, {name: torch.cat(t) for name, t in targets.items()}), unreadable


def decide(model: TransferModel, examples: Examples, batch_size: int = 256) -> Decided:
    """What fusion and heads make of encoded rows; no encoder runs."""
    logits: dict[str, list[Tensor]] = {name: [] for name in model.tasks}
    vectors, weights = [], []
    training = model.training
    model.eval()
    with torch.inference_mode():
        for chunk in _chunks(len(examples), batch_size):
            rows = slice(chunk[0], chunk[-1] + 1)
            some = {
                name: Features(f.tokens[rows], f.mask[rows]).to(model.device)
                for name, f in examples.features.items()
            }
            fused = model.fusion(some)
            for name, head in model.heads.items():
                logits[name].append(model.fusion.decide(head, fused).float().cpu())
            vectors.append(fused.vector.float().cpu())
            if fused.weights is not None:
                weights.append(fused.weights.float().cpu())
    model.train(training)
    return Decided(
        {name: torch.cat(z) for name, z in logits.items()},
        torch.cat(vectors),
        torch.cat(weights) if weights else None,
    )


def subset_logits(
    model: TransferModel, examples: Examples
) -> dict[str, dict[tuple[str, ...], Tensor]]:
    """By task, logits (N, C) with each of the 2^M subsets of the modalities, () being none."""
    found = by_subset(lambda seen: decide(model, seen).logits, examples)
    found[()] = decide(model, without(examples, ())).logits
    return {name: {kept: z[name] for kept, z in found.items()} for name in model.tasks}


def _chunks(rows: int, size: int) -> Iterator[list[int]]:
    for start in range(0, rows, size):
        yield list(range(start, min(start + size, rows)))


def _joined(parts: list[Features]) -> Features:
    longest = max(part.mask.shape[1] for part in parts)
    tokens = [pad(p.tokens, (0, 0, 0, longest - p.mask.shape[1])) for p in parts]
    masks = [pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]
    return Features(torch.cat(tokens), torch.cat(masks))
