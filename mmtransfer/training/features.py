"""Frozen means computed once: fill the feature store, on all processes, or find it filled."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mmtransfer.data.collate import Augmentation, Collate
from mmtransfer.data.rows import NumberedRows, Rows
from mmtransfer.data.samplers import GivenBatches
from mmtransfer.data.store import (
    FeatureStore,
    cache_directory,
    finish_store,
    is_sound,
    store_key,
    write_shard,
)
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features, Inputs
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.reading import read_windows
from mmtransfer.training.stop import Stopped, StopSignal


@dataclass(frozen=True)
class Extraction:
    """What is computed once of a column.

    data: fingerprint of its values
    depth: 0 for the features of the whole encoder; of a cut for the activations below it
    pooled: only the mean of a row's features
    augment: changes the values first, as in epoch `view`
    """

    name: str
    encoder: Encoder
    rows: Rows
    split: str
    data: str
    depth: int = 0
    pooled: bool = False
    augment: Augmentation | None = None
    view: int = 0

    def description(self, options: TrainingOptions, precision: str) -> dict[str, Any]:
        """All that the numbers depend on; its digest is the name of the store."""
        whole = () if self.depth == 0 else (self.depth,)
        changed = None
        if self.augment is not None:
            changed = [options.augment, self.view, options.seed]
        return {
            "column": self.name,
            "data": self.data,
            "encoder": self.encoder.fingerprint(*whole),
            "depth": self.depth,
            "pooled": self.pooled,
            "augmentation": changed,
            "on_error": options.on_error,
            "computed in": precision,
            "precision": options.feature_precision,
        }

    def __call__(self, inputs: Inputs) -> Features:
        """Encoder inputs of some rows -> what is stored of them, (P, T, D) float32."""
        if self.depth:
            found = self.encoder.below(self.depth, **inputs.values)
        else:
            found = self.encoder(**inputs.values)
        # A mean over half-precision tokens would lose digits that the tokens still have.
        found = Features(found.tokens.float(), found.mask)
        return found.pool() if self.pooled else found


def stored_features(
    extraction: Extraction,
    options: TrainingOptions,
    accelerator: Accelerator,
    advance: Callable[[int], None] = lambda rows: None,
    stop: StopSignal | None = None,
    tell: Callable[[str], None] = print,
) -> tuple[FeatureStore, int]:
    """The store of one column under one frozen encoder, and how many rows were encoded for it now.

    Each process encodes consecutive rows into a shard of its own; `advance` is told of progress,
    `tell` of trouble that was overcome.
    Raises `Stopped`, on all processes, when one of them is asked to stop meanwhile.
    """
    rows = extraction.rows
    about = extraction.description(options, str(accelerator.mixed_precision))
    key = store_key(*about.values())
    root = cache_directory(options.cache) / "features"
    final = root / key
    # The main process decides, lest the directory appear between the looks of two processes.
    complete = accelerator.is_main_process and is_sound(final)
    decision = [key, None if complete else f"{key}.{uuid.uuid4().hex[:8]}.part"]
    broadcast_object_list(decision)
    final = root / str(decision[0])
    if decision[1] is None:
        advance(len(rows))
        store = FeatureStore(final)
        store.mark_used()
        return store, 0
    part = root / decision[1]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    # Whole batches go to the processes: a batch, and so its padding, is the same for any number.
    size = options.evaluation_batch_size
    batches = [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
    share = np.array_split(np.arange(len(batches)), ranks)[rank]
    unreadable: list[int] = []
    stop = stop or StopSignal()
    try:
        width = [0]
        chunks = _encode(
            extraction, [batches[i] for i in share], options, accelerator, unreadable, width, tell
        )
        wanted = takewhile(lambda _: not stop.requested, _told(chunks, advance))
        shard = write_shard(part, rank, wanted, options.feature_precision)
        everywhere = gather_object([(shard, unreadable, width[0], stop.requested)])
        if any(stopped for *_, stopped in everywhere):
            raise Stopped(
                f"stopped by SIGTERM while {extraction.name!r} was encoded: go on with --resume"
            )
        if accelerator.is_main_process:
            found = {
                "shards": [shard for shard, *_ in everywhere],
                "unreadable": sorted(i for _, rows, *_ in everywhere for i in rows),
                "width": max(width for _, _, width, _ in everywhere) or extraction.encoder.width,
                "encoder class": type(extraction.encoder).__name__,
                "split": extraction.split,
            }
            finish_store(part, final, about | found)
        accelerator.wait_for_everyone()
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return FeatureStore(final), len(rows)


def _told(
    chunks: Iterator[list[np.ndarray | None]], advance: Callable[[int], None]
) -> Iterator[list[np.ndarray | None]]:
    for chunk in chunks:
        advance(len(chunk))
        yield chunk


def _encode(
    extraction: Extraction,
    batches: list[list[int]],
    options: TrainingOptions,
    accelerator: Accelerator,
    unreadable: list[int],
    width: list[int],
    tell: Callable[[str], None],
) -> Iterator[list[np.ndarray | None]]:
    """Chunks of one `(T_i, D)` array, or None, per row; notes D and what could not be read."""
    name, encoder = extraction.name, extraction.encoder
    collate = Collate(
        {name: encoder},
        {},
        split=extraction.split,
        on_error=options.on_error,
        augment={} if extraction.augment is None else {name: extraction.augment},
        seed=options.seed,
    )
    collate.epoch.fill_(extraction.view)
    loader: Any = torch.utils.data.DataLoader(
        NumberedRows(extraction.rows, [name]),  # type: ignore[arg-type]
        batch_sampler=GivenBatches(batches),
        collate_fn=collate,
        num_workers=options.workers,
        generator=torch.Generator(),  # encoding must not move the random state of training
        pin_memory=accelerator.device.type == "cuda",
    )
    training = encoder.training
    encoder.eval().to(accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        for (batch,) in read_windows(loader, 1, tell):
            unreadable += batch.unreadable.get(name, [])
            chunk: list[np.ndarray | None] = [None] * len(batch)
            inputs = batch.inputs.get(name)
            if isinstance(inputs, Inputs):
                features = extraction(inputs.to(accelerator.device, non_blocking=True))
                width[0] = features.width
                tokens = features.tokens.cpu().numpy()
                mask = features.mask.cpu().numpy()
                for k, b in enumerate(inputs.rows.tolist()):
                    chunk[b] = tokens[k][mask[k]]
            yield chunk
    encoder.train(training)
