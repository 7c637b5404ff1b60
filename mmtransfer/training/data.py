"""What the loop reads: loaders and their workers, stored features, unreadable values."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from mmtransfer.data.augment import build_augmentations
from mmtransfer.data.collate import Collate, Stored
from mmtransfer.data.rows import (
    NumberedRows,
    Rows,
    check_rows,
    column,
    columns_of,
    fingerprint_column,
)
from mmtransfer.data.samplers import EndlessBatches, EvaluationBatches, TrainBatches
from mmtransfer.data.store import FeatureStore, StoredViews
from mmtransfer.data.stream import Stream, as_stream, is_stream
from mmtransfer.data.stream_batches import EvaluationStream, TrainStream, steps_of
from mmtransfer.features import Batch
from mmtransfer.model import TransferModel, frozen_depth, is_trainable
from mmtransfer.tasks.base import Task
from mmtransfer.training.features import Extraction, stored_features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.order import check_order, choose_order
from mmtransfer.training.progress import Progress
from mmtransfer.training.reading import read_windows
from mmtransfer.training.sharding import unsharded
from mmtransfer.training.stop import StopSignal
from mmtransfer.transfer.base import Strategy


class TrainingData:
    """The splits of a run, and how they reach the model in the present phase.

    Raises `ValueError` at once for data that does not fit the model.
    """

    def __init__(
        self,
        model: TransferModel,
        splits: Mapping[str, Rows],
        strategy: Strategy,
        options: TrainingOptions,
        accelerator: Accelerator,
        progress: Progress,
        stop: StopSignal,
    ) -> None:
        self.model, self.splits, self.strategy = model, dict(splits), strategy
        #: tasks of the source, which the target's rows know nothing of
        there = self.tasks_of("source", splits["source"]) if "source" in splits else {}
        self.elsewhere = set(there) - set(columns_of(splits["train"]))
        for split, rows in splits.items():
            training = split == "train"
            check_rows(rows, model.encoders, self.tasks_of(split, rows), split, training)
            if is_stream(rows) and split in ("unlabelled", "source"):
                raise ValueError(f"the {split} rows must be at hand, found a stream")
        check_order(splits["train"], model.tasks, options)
        self.options, self.accelerator, self.progress = options, accelerator, progress
        self.stop = stop
        kinds = {name: encoder.modality for name, encoder in model.encoders.items()}
        self.augment = build_augmentations(options.augment, kinds, columns_of(splits["train"]))
        self.encoding_seconds, self.encoded_rows = 0.0, 0
        self.unreadable: dict[str, dict[str, set[int]]] = {}
        self.stores: dict[tuple[str, str], FeatureStore | StoredViews] = {}
        self.depths: dict[str, int | None] = {}  # by column, as `stored_depth` says
        self.fingerprints: dict[tuple[str, str], str] = {}
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by running workers
        self.loaders: dict[str, Any] = {}  # of the present phase, with their workers
        self.ended = False  # after training weights may change between any two looks at a split
        self.lengths: dict[str, Tensor] = {}  # of the train rows, by column

    def tasks_of(self, split: str, rows: Rows) -> dict[str, Task]:
        """The tasks that the rows of a split must have labels for, or may say so.

        None of unlabelled rows; of the source at least one.
        """
        if split == "unlabelled":
            return {}
        found = columns_of(rows)
        if split == "source" and not any(name in found for name in self.model.tasks):
            raise ValueError(
                f"the source rows have no column of the tasks {list(self.model.tasks)}; found "
                f"{found}"
            )
        optional = set(self.model.tasks) if split == "source" else self.elsewhere
        return {n: t for n, t in self.model.tasks.items() if n in found or n not in optional}

    def begin_phase(self) -> None:
        """Forget the loaders, and the stores of what trains now; fill those of what is frozen."""
        before, self.depths = self.depths, self._depths()
        kept = {
            n for n, depth in self.depths.items() if depth is not None and depth == before.get(n)
        }
        self.stores = {key: store for key, store in self.stores.items() if key[1] in kept}
        self.loaders.clear()
        for split, rows in self.splits.items():
            self.stores_of(split, rows)

    def _depths(self) -> dict[str, int | None]:
        """What is stored by column: 0 features, else activations below a cut; None for nothing."""
        depths: dict[str, int | None] = {}
        for name, encoder in self.model.encoders.items():
            if not is_trainable(encoder):
                depths[name] = 0
                continue
            cuts = encoder.cuts if self.options.prefix_cache else ()
            depths[name] = max((c for c in cuts if c <= frozen_depth(encoder)), default=None)
        return depths

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean (D,) and deviation (D,) of the stored training features of each frozen encoder."""
        found = {}
        for name, store in self.stores_of("train", self.splits["train"]).items():
            if not store.depth:
                first = store.views[0] if isinstance(store, StoredViews) else store
                found[name] = first.statistics()
        return {n: (torch.from_numpy(m), torch.from_numpy(d)) for n, (m, d) in found.items()}

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        rows, options = self.splits["train"], self.options
        if is_stream(rows):
            return steps_of(self._used(rows), options.batch_size, options.steps_per_epoch)
        return math.ceil(len(rows) / options.batch_size)

    def train_loader(self, accumulation: int) -> tuple[Any, TrainBatches | TrainStream]:
        """A loader of this process's micro-batches, and what orders them and counts the steps."""
        rows, options = self.splits["train"], self.options
        state = self.accelerator
        parts = (accumulation, state.process_index, state.num_processes)
        batches: TrainBatches | TrainStream
        if is_stream(rows):
            stream = self._used(rows)
            batches = TrainStream(
                stream, options.batch_size, options.seed, self.steps, *parts, options.shuffle_buffer
            )
        else:
            order = choose_order(rows, self.model, options, self.lengths)
            batches = TrainBatches(len(rows), options.batch_size, options.seed, *parts, order)
        return self._loader("train", rows, batches), batches

    def beside(
        self, windows: Iterator[list[Batch]], step: int, accumulation: int
    ) -> Iterator[list[Batch]]:
        """Windows from a step of the run on, with the unlabelled rows that a method needs."""
        if not self.strategy.needs & {"unlabelled", "unlabelled_inputs"}:
            yield from windows
            return
        name = f"unlabelled in {accumulation} parts"
        if name not in self.loaders:
            self.loaders[name] = self._unlabelled_loader(accumulation)
        loader = self.loaders[name]
        loader.batch_sampler.start = step
        others = read_windows(loader, accumulation, self.progress.line)
        with closing(others):  # type: ignore[type-var]
            for window in windows:
                for batch, other in zip(window, next(others), strict=True):
                    batch.unlabelled = other
                    self._note_unreadable("unlabelled", other.unreadable)
                yield window

    def _unlabelled_loader(self, accumulation: int) -> Any:
        rows, options, state = self.splits["unlabelled"], self.options, self.accelerator
        parts = (accumulation, state.process_index, state.num_processes)
        size = max(min(options.batch_size, len(rows)), accumulation * state.num_processes)
        batches = EndlessBatches(len(rows), size, options.seed, *parts)
        return self._loader("unlabelled", rows, batches)

    def evaluation_loader(self, split: str, rows: Rows) -> Any:
        """A loader of all rows in order; for a split of the run it is made once per phase."""
        known = self.splits.get(split) is rows  # other rows may come under any name
        if not known:
            check_rows(rows, self.model.encoders, self.tasks_of(split, rows), split)
        kept = known and not self.ended
        if kept and split in self.loaders:
            return self.loaders[split]
        loader = self._loader(split, rows, self._each_once(rows))
        if kept:
            self.loaders[split] = loader
        return loader

    def mixed_loader(self, split: str) -> Any:
        """A loader of all rows of a split in random order; of a stream in its own."""
        rows = self.splits[split]
        return self._loader(split, rows, self._each_once(rows, self.options.seed))

    def _each_once(self, rows: Rows, seed: int | None = None) -> Any:
        size = self.options.evaluation_batch_size
        part = (self.accelerator.process_index, self.accelerator.num_processes)
        if is_stream(rows):
            return EvaluationStream(self._used(rows), size, *part)
        return EvaluationBatches(len(rows), size, *part, seed)

    def windows(self, split: str, loader: Any, size: int) -> Iterator[list[Batch]]:
        """The batches of a loader, `size` at a time, from the start that its sampler is set to.

        Workers that were killed are replaced, and go on with the first window that is not whole.
        What could not be read is remembered.
        """
        stream = loader.batch_sampler is None  # it makes its batches by itself
        batches = loader.dataset if stream else loader.batch_sampler
        loader.collate_fn.epoch.fill_(getattr(batches, "epoch", 0))
        for window in read_windows(loader, size, self.progress.line):
            for batch in window:
                self._note_unreadable(split, batch.unreadable)
            yield window

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, of this process."""
        return {
            "unreadable": {
                split: {name: sorted(rows) for name, rows in columns.items()}
                for split, columns in self.unreadable.items()
            },
            "encoding_seconds": self.encoding_seconds,
            "encoded_rows": self.encoded_rows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave; rows that were encoded since are counted too."""
        for split, columns in state["unreadable"].items():
            self._note_unreadable(split, columns)
        self.encoding_seconds += state["encoding_seconds"]
        self.encoded_rows += state["encoded_rows"]

    def unreadable_counts(self) -> dict[str, dict[str, int]]:
        """`{split: {column: values that could not be read}}`, over all processes."""
        mine = [(s, c, sorted(rows)) for s, cs in self.unreadable.items() for c, rows in cs.items()]
        found: dict[str, dict[str, set[int]]] = {}
        for split, name, rows in gather_object(mine):
            found.setdefault(split, {}).setdefault(name, set()).update(rows)
        return {s: {c: len(rows) for c, rows in cs.items()} for s, cs in found.items()}

    def stores_of(self, split: str, rows: Rows) -> dict[str, FeatureStore | StoredViews]:
        """The stores of all modalities whose encoder is frozen now, wholly or below a cut.

        Activations are only stored of the splits of the run, which are read again and again.
        """
        if is_stream(rows):
            return {}  # nothing says that a row is the same when it comes again
        known = self.splits.get(split) is rows
        stores: dict[str, FeatureStore | StoredViews] = {}
        for name, depth in self._depths().items():
            if known and not self.ended and (split, name) in self.stores:
                stores[name] = self.stores[split, name]
            elif depth is not None and (known or not depth):
                trained_on = split in ("train", "unlabelled")
                views = self.options.feature_views if trained_on else 0
                if depth and trained_on and self._values_change(name, views):
                    continue
                stores[name] = self._store(name, rows, split, depth, views, known)
                if known:
                    self.stores[split, name] = stores[name]
        return stores

    def _values_change(self, name: str, views: int) -> bool:
        """Whether training rows have other values of this column in every epoch."""
        kind = self.model.encoders[name].modality
        mixed = any(kind in method.changes for method in self.strategy.methods)
        return mixed or (name in self.augment and not views)

    def _store(
        self, name: str, rows: Rows, split: str, depth: int, views: int, known: bool
    ) -> FeatureStore | StoredViews:
        key = (split, name)
        data = self.fingerprints.get(key) if known else None
        data = data or fingerprint_column(rows, name)
        if known:
            self.fingerprints[key] = data
        encoder, change = self.model.encoders[name], self.augment.get(name) if views else None
        pooled = not depth and not self.model.fusion.uses_tokens
        stores = []
        for view in range(views if change is not None else 1):
            wanted = Extraction(name, encoder, rows, split, data, depth, pooled, change, view)
            title = f"{'activations' if depth else 'features'} of {name}, {split}"
            title += f", view {view + 1}/{views}" if change is not None else ""
            started = time.perf_counter()
            with self.progress.bar(title, len(rows)) as advance, unsharded(self.model):
                store, encoded = stored_features(
                    wanted, self.options, self.accelerator, advance, self.stop, self.progress.line
                )
            stores.append(store)
            self.encoded_rows += encoded
            self._note_unreadable(split, {name: store.unreadable})
            if encoded:
                self.encoding_seconds += time.perf_counter() - started
        return stores[0] if change is None else StoredViews(stores, self.epoch)

    def _used(self, rows: Rows) -> Stream:
        stream = as_stream(rows)
        used = (*self.model.encoders, *self.model.tasks)
        return stream.select_columns([name for name in used if name in stream.column_names])

    def _loader(
        self, split: str, rows: Rows, batches: Sampler[list[int]] | IterableDataset[Any]
    ) -> Any:
        training = isinstance(batches, TrainBatches | TrainStream)
        model, options = self.model, self.options
        stores = self.stores_of(split, rows)
        trained = {n for n, e in model.encoders.items() if training and is_trainable(e)}
        collate = Collate(
            model.encoders,
            {} if split == "unlabelled" else model.tasks,
            split=split,
            on_error=options.on_error,
            methods=self.strategy.methods if split == "train" and training else (),
            augment={n: change for n, change in self.augment.items() if n in trained},
            seed=options.seed,
            spare=self._spare(stores) if training and self.accelerator.is_fsdp2 else None,
        )
        if training:
            collate.epoch = self.epoch
        if isinstance(batches, IterableDataset):  # it makes the batches by itself
            source: dict[str, Any] = {"dataset": batches, "batch_size": None}
        else:
            columns = [*model.encoders, *self.tasks_of(split, rows)]
            numbered = NumberedRows(rows, columns, stores)
            source = {"dataset": numbered, "batch_sampler": batches}
        return DataLoader(
            **source,
            collate_fn=collate,
            num_workers=options.workers,
            # Forking anew each epoch makes the kernel copy every page that training touches next.
            persistent_workers=options.workers > 0,
            generator=torch.Generator(),  # else each loader draws from the state of drop-out
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _spare(self, stores: Mapping[str, FeatureStore | StoredViews]) -> dict[str, Any]:
        """A value for each encoder that trains: with FSDP all processes must run it together."""
        values: dict[str, Any] = {}
        for name, encoder in self.model.encoders.items():
            if is_trainable(encoder):
                store = stores.get(name)
                known = column(self.splits["train"], name) if store is None else store
                values[name] = next((value for value in known if value is not None), None)
                if store is not None and values[name] is not None:
                    values[name] = Stored(values[name], store.depth)
        return {name: value for name, value in values.items() if value is not None}

    def _note_unreadable(self, split: str, found: Mapping[str, list[int]]) -> None:
        for name, rows in found.items():
            if rows:
                self.unreadable.setdefault(split, {}).setdefault(name, set()).update(rows)
