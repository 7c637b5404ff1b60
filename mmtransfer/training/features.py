"""Frozen means computed once: fill the feature store, on all processes, or find it filled."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mmtransfer.data.collate import Collate
from mmtransfer.data.rows import NumberedRows, Rows, fingerprint_column
from mmtransfer.data.store import (
    FeatureStore,
    cache_directory,
    finish_store,
    store_key,
    write_shard,
)
from mmtransfer.encoders.base import Encoder
from mmtransfer.training.options import TrainingOptions


def stored_features(
    name: str,
    encoder: Encoder,
    rows: Rows,
    split: str,
    pooled: bool,
    options: TrainingOptions,
    accelerator: Accelerator,
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[FeatureStore, int]:
    """The store of one column under one frozen encoder, and how many rows were encoded for it now.

    Each process encodes consecutive rows into a shard of its own; `advance` is told of progress.
    """
    key = store_key(
        fingerprint_column(rows, name) + options.on_error,
        encoder.fingerprint(),
        pooled,
        accelerator.mixed_precision,
    )
    root = cache_directory(options.cache) / "features"
    final = root / key
    # The main process decides, lest the directory appear between the looks of two processes.
    decision = [None if (final / "store.json").is_file() else f"{key}.{uuid.uuid4().hex[:8]}.part"]
    broadcast_object_list(decision)
    if decision[0] is None:
        advance(len(rows))
        return FeatureStore(final), 0
    part = root / decision[0]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    mine = np.array_split(np.arange(len(rows)), ranks)[rank]
    collate = Collate({name: encoder}, {}, split=split, on_error=options.on_error)
    unreadable: list[int] = []
    try:
        chunks = _encode(
            name, encoder, rows, mine, pooled, collate, options, accelerator, advance, unreadable
        )
        write_shard(part, rank, encoder.width, chunks)
        everywhere = gather_object([unreadable])
        if accelerator.is_main_process:
            finish_store(part, final, encoder.width, ranks, [i for u in everywhere for i in u])
        accelerator.wait_for_everyone()
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return FeatureStore(final), len(rows)


def _encode(
    name: str,
    encoder: Encoder,
    rows: Rows,
    mine: np.ndarray,
    pooled: bool,
    collate: Collate,
    options: TrainingOptions,
    accelerator: Accelerator,
    advance: Callable[[int], None],
    unreadable: list[int],
) -> Iterator[list[np.ndarray | None]]:
    """Chunks of one `(T_i, D)` array, or None, per row."""
    loader: Any = torch.utils.data.DataLoader(
        NumberedRows(rows, [name]),  # type: ignore[arg-type]
        batch_sampler=[list(map(int, b)) for b in _split(mine, options.evaluation_batch_size)],
        collate_fn=collate,
        num_workers=options.workers,
        generator=torch.Generator(),  # encoding must not move the random state of training
        pin_memory=accelerator.device.type == "cuda",
    )
    training = encoder.training
    encoder.eval().to(accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        for batch in loader:
            unreadable += batch.unreadable.get(name, [])
            chunk: list[np.ndarray | None] = [None] * len(batch)
            if name in batch.inputs:
                inputs = batch.inputs[name].to(accelerator.device, non_blocking=True)
                features = encoder(**inputs.values)
                features = features.pool() if pooled else features
                tokens = features.tokens.float().cpu().numpy()
                mask = features.mask.cpu().numpy()
                for k, b in enumerate(batch.inputs[name].rows.tolist()):
                    chunk[b] = tokens[k][mask[k]]
            advance(len(batch))
            yield chunk
    encoder.train(training)


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
