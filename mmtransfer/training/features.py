"""Frozen means computed once: fill the feature store, on all processes, or find it filled."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mmtransfer.data.collate import Collate, read_errors
from mmtransfer.data.rows import NumberedRows, Rows, fingerprint_column
from mmtransfer.data.store import (
    FeatureStore,
    cache_directory,
    finish_store,
    store_key,
    write_shard,
)
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features, Inputs
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.stop import Stopped, StopSignal


def stored_features(
    name: str,
    encoder: Encoder,
    rows: Rows,
    split: str,
    pooled: bool,
    options: TrainingOptions,
    accelerator: Accelerator,
    advance: Callable[[int], None] = lambda rows: None,
    stop: StopSignal | None = None,
) -> tuple[FeatureStore, int]:
    """The store of one column under one frozen encoder, and how many rows were encoded for it now.

    Each process encodes consecutive rows into a shard of its own; `advance` is told of progress.
    Raises `Stopped`, on all processes, when one of them is asked to stop meanwhile.
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
    complete = (final / "store.json").is_file()
    decision = [key, None if complete else f"{key}.{uuid.uuid4().hex[:8]}.part"]
    broadcast_object_list(decision)
    final = root / str(decision[0])
    if decision[1] is None:
        advance(len(rows))
        return FeatureStore(final), 0
    part = root / decision[1]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    # Whole batches go to the processes: a batch, and so its padding, is the same for any number.
    size = options.evaluation_batch_size
    batches = [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
    share = np.array_split(np.arange(len(batches)), ranks)[rank]
    mine = [batches[i] for i in share]
    collate = Collate({name: encoder}, {}, split=split, on_error=options.on_error)
    unreadable: list[int] = []
    try:
        chunks = _encode(
            name, encoder, rows, mine, pooled, collate, options, accelerator, advance, unreadable
        )
        stop = stop or StopSignal()
        write_shard(part, rank, encoder.width, takewhile(lambda _: not stop.requested, chunks))
        everywhere = gather_object([unreadable])
        if any(gather_object([stop.requested])):
            raise Stopped(f"stopped by SIGTERM while {name!r} was encoded: go on with --resume")
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
    mine: list[list[int]],
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
        batch_sampler=mine,
        collate_fn=collate,
        num_workers=options.workers,
        generator=torch.Generator(),  # encoding must not move the random state of training
        pin_memory=accelerator.device.type == "cuda",
    )
    training = encoder.training
    encoder.eval().to(accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        for batch in read_errors(loader):
            unreadable += batch.unreadable.get(name, [])
            chunk: list[np.ndarray | None] = [None] * len(batch)
            inputs = batch.inputs.get(name)
            if isinstance(inputs, Inputs):
                inputs = inputs.to(accelerator.device, non_blocking=True)
                features = encoder(**inputs.values)
                # A mean over half-precision tokens would lose digits that the tokens still have.
                features = Features(features.tokens.float(), features.mask)
                features = features.pool() if pooled else features
                tokens = features.tokens.cpu().numpy()
                mask = features.mask.cpu().numpy()
                for k, b in enumerate(inputs.rows.tolist()):
                    chunk[b] = tokens[k][mask[k]]
            advance(len(batch))
            yield chunk
    encoder.train(training)
