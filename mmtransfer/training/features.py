"""Frozen means computed once: fill the feature store, on all processes, or find it filled."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mmtransfer.data.collate import Augmentation, Collate
from mmtransfer.data.rows import NumberedRows, Rows
from mmtransfer.data.samplers import GivenBatches
from mmtransfer.data.store import (
    DTYPES,
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
    Raises `Stopped`, on all processes, when one of them is asked to stop meanwhile, and `OSError`
    when the disk will not hold the features.
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
    stop = stop or StopSignal()
    encoding = Encoding(extraction, options, accelerator, root, advance, tell)
    try:
        wanted = takewhile(lambda _: not stop.requested, encoding)
        shard = write_shard(part, accelerator.process_index, wanted, options.feature_precision)
        everywhere = gather_object([(shard, encoding.unreadable, encoding.width, stop.requested)])
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


@dataclass
class Encoding:
    """The share of this process: chunks of one `(T_i, D)` float32 array, or None, per row.

    Afterwards `width` is D, 0 if no row had the modality, and `unreadable` has the rows whose value
    could not be read.
    """

    extraction: Extraction
    options: TrainingOptions
    accelerator: Accelerator
    root: Path
    advance: Callable[[int], None]
    tell: Callable[[str], None]
    width: int = 0
    unreadable: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[np.ndarray | None]]:
        name, encoder = self.extraction.name, self.extraction.encoder
        device = self.accelerator.device
        training = encoder.training
        encoder.eval().to(device)
        with torch.inference_mode():
            for number, (batch,) in enumerate(read_windows(self._loader(), 1, self.tell)):
                self.unreadable += batch.unreadable.get(name, [])
                chunk: list[np.ndarray | None] = [None] * len(batch)
                inputs = batch.inputs.get(name)
                if isinstance(inputs, Inputs):
                    inputs = inputs.to(device, non_blocking=True)
                    with self.accelerator.autocast():  # not around the loader: it forks workers
                        features = self.extraction(inputs)
                    self.width = features.width
                    tokens = features.tokens.cpu().numpy()
                    mask = features.mask.cpu().numpy()
                    for k, b in enumerate(inputs.rows.tolist()):
                        chunk[b] = tokens[k][mask[k]]
                if number == 0:
                    self._check_disk(chunk)
                self.advance(len(batch))
                yield chunk
        encoder.train(training)

    def _loader(self) -> Any:
        extraction, options, rows = self.extraction, self.options, self.extraction.rows
        name = extraction.name
        # Whole batches go to the processes, so that a batch and its padding are always the same.
        size = options.evaluation_batch_size
        batches = [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
        shares = np.array_split(np.arange(len(batches)), self.accelerator.num_processes)
        collate = Collate(
            {name: extraction.encoder},
            {},
            split=extraction.split,
            on_error=options.on_error,
            augment={} if extraction.augment is None else {name: extraction.augment},
            seed=options.seed,
        )
        collate.epoch.fill_(extraction.view)
        return torch.utils.data.DataLoader(
            NumberedRows(rows, [name]),  # type: ignore[arg-type]
            batch_sampler=GivenBatches(
                [batches[i] for i in shares[self.accelerator.process_index]]
            ),
            collate_fn=collate,
            num_workers=options.workers,
            generator=torch.Generator(),  # encoding must not move the random state of training
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _check_disk(self, chunk: list[np.ndarray | None]) -> None:
        """Judge by the first chunk whether the disk will hold them all."""
        numbers = sum(tokens.size for tokens in chunk if tokens is not None)
        each = np.dtype(DTYPES[self.options.feature_precision]).itemsize
        needed = each * numbers / len(chunk) * len(self.extraction.rows)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            depth = self.extraction.depth
            what = f"activations below stage {depth}" if depth else "features"
            raise OSError(
                f"the {what} of {self.extraction.name!r} need about {needed / 1e9:.1f} GB, and "
                f"{self.root} has {free / 1e9:.1f} GB free: name another directory as `cache`, or "
                f"set feature_precision fp16{', or prefix_cache false' if depth else ''}"
            )
