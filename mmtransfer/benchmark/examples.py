"""Encoded rows in memory: what fusions are compared on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from rich.progress import Progress

from mmtransfer.data.examples import Examples
from mmtransfer.data.rows import Rows, check_rows, column, columns_of, fingerprint_column
from mmtransfer.data.store import FeatureStore
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features
from mmtransfer.tasks.base import Task
from mmtransfer.training.features import Extraction, stored_features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.setup import make_accelerator


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
            tokens[i, : len(row)] = torch.from_numpy(np.array(row))  # stored ones are read-only
            mask[i, : len(row)] = True
    return Features(tokens, mask)
