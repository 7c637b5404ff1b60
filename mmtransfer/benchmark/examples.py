"""Encoded rows in memory: what fusions are compared on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtransfer.data.rows import Rows, check_rows, column, columns_of, fingerprint_column
from mmtransfer.data.store import FeatureStore
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features
from mmtransfer.tasks.base import Task
from mmtransfer.training.features import Extraction, stored_features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.setup import make_accelerator


@dataclass
class Examples:
    """N rows: features by modality, tokens (N, T, D) and mask (N, T); targets (N,) by task."""

    features: dict[str, Features]
    targets: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.features.values())).mask)

    def pooled(self) -> Examples:
        """One token per row and modality."""
        found = {}
        for name, features in self.features.items():
            parts = [  # all at once would need several times the memory
                Features(t.float(), m).pool()
                for t, m in zip(features.tokens.split(256), features.mask.split(256), strict=True)
            ]
            tokens = torch.cat([part.tokens for part in parts])
            found[name] = Features(tokens, torch.cat([part.mask for part in parts]))
        return Examples(found, self.targets)

    def only(self, modalities: Sequence[str]) -> Examples:
        """The same rows as a model of these modalities sees them."""
        return Examples({name: self.features[name] for name in modalities}, self.targets)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean (D,) and deviation (D,) of the pooled features of the rows that have them."""
        found = {}
        for name, features in self.pooled().features.items():
            real = features.tokens[:, 0][features.present].double()
            found[name] = (real.mean(0).float(), real.std(0, correction=0).float())
        return found

    def save(self, path: Path) -> None:
        tensors = {f"target.{name}": target for name, target in self.targets.items()}
        for name, features in self.features.items():
            tensors |= {f"tokens.{name}": features.tokens, f"mask.{name}": features.mask}
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Examples:
        tensors = load_file(path)
        names = [key.removeprefix("tokens.") for key in tensors if key.startswith("tokens.")]
        targets = {k.removeprefix("target."): t for k, t in tensors.items() if k[:7] == "target."}
        features = {n: Features(tensors[f"tokens.{n}"], tensors[f"mask.{n}"]) for n in names}
        return cls(features, targets)


def encode_splits(
    splits: Mapping[str, Rows],
    encoders: Mapping[str, Encoder],
    tasks: Mapping[str, Task],
    options: TrainingOptions,
) -> tuple[dict[str, Examples], dict[str, str]]:
    """Examples by split, through the feature store, and fingerprints of what they were made of."""
    accelerator = make_accelerator(options, None)
    examples, marks = {}, {}
    for split, rows in splits.items():
        check_rows(rows, encoders, tasks, split)
        features = {}
        for name, encoder in encoders.items():
            data = fingerprint_column(rows, name)
            extraction = Extraction(name, encoder, rows, split, data)
            with Progress(disable=not options.progress) as progress:
                bar = progress.add_task(f"{split} {name}", total=len(rows))
                told = partial(progress.advance, bar)
                store, _ = stored_features(extraction, options, accelerator, told)
            features[name] = padded(store)
            marks[f"{split}.{name}"] = f"{data} by {encoder.fingerprint()}"
        targets = {}
        for name, task in tasks.items():
            known = name in columns_of(rows)
            values = list(column(rows, name)) if known else [None] * len(rows)
            targets[name] = task.encode(values)
            marks[f"{split}.{name}"] = fingerprint_column(rows, name) if known else "none"
        examples[split] = Examples(features, targets)
    return examples, marks


def padded(store: FeatureStore) -> Features:
    """All rows of a store, as (N, T, D) of half precision and a mask."""
    rows = [store[i] for i in range(len(store))]
    longest = max((len(row) for row in rows if row is not None), default=1)
    tokens = torch.zeros(len(rows), longest, store.width, dtype=torch.float16)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        if row is not None:
            tokens[i, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
            mask[i, : len(row)] = True
    return Features(tokens, mask)
