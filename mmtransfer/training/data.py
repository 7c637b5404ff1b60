"""What the loop reads: loaders and their workers, stored features, unreadable values."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from mmtransfer.data.augment import build_augmentations
from mmtransfer.data.collate import Collate, read_errors
from mmtransfer.data.rows import NumberedRows, Rows, check_rows, column, columns_of
from mmtransfer.data.samplers import EvaluationBatches, TrainBatches
from mmtransfer.data.store import FeatureStore
from mmtransfer.data.stream import Stream, as_stream, is_stream
from mmtransfer.data.stream_batches import EvaluationStream, TrainStream, steps_of
from mmtransfer.features import Batch
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.training.features import stored_features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.order import check_order, choose_order
from mmtransfer.training.progress import Progress
from mmtransfer.training.setup import windows
from mmtransfer.training.sharding import unsharded
from mmtransfer.training.stop import StopSignal
from mmtransfer.transfer.base import Strategy

WORKER_ATTEMPTS = 3


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
        for split, rows in splits.items():
            check_rows(rows, model.encoders, model.tasks, split, training=split == "train")
        check_order(splits["train"], model.tasks, options)
        self.model, self.splits, self.strategy = model, dict(splits), strategy
        self.options, self.accelerator, self.progress = options, accelerator, progress
        self.stop = stop
        kinds = {name: encoder.modality for name, encoder in model.encoders.items()}
        self.augment = build_augmentations(options.augment, kinds, columns_of(splits["train"]))
        self.encoding_seconds, self.encoded_rows = 0.0, 0
        self.unreadable: dict[str, dict[str, set[int]]] = {}
        self.stores: dict[tuple[str, str], FeatureStore] = {}
        self.loaders: dict[str, Any] = {}  # of the present phase, with their workers
        self.lengths: dict[str, Tensor] = {}  # of the train rows, by column

    def begin_phase(self) -> None:
        """Forget the loaders, and the features of what trains now; fill the stores of the rest."""
        changing = {name for name, e in self.model.encoders.items() if is_trainable(e)}
        self.stores = {key: s for key, s in self.stores.items() if key[1] not in changing}
        self.loaders.clear()
        for split, rows in self.splits.items():
            self.stores_of(split, rows)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean (D,) and deviation (D,) of the stored training features of each frozen encoder."""
        stores = self.stores_of("train", self.splits["train"])
        found = {name: store.statistics() for name, store in stores.items()}
        return {n: (torch.from_numpy(m), torch.from_numpy(d)) for n, (m, d) in found.items()}

    def train_loader(self, accumulation: int) -> tuple[Any, TrainBatches | TrainStream]:
        """A loader of this process's micro-batches, and what orders them and counts the steps."""
        rows, options = self.splits["train"], self.options
        state = self.accelerator
        parts = (accumulation, state.process_index, state.num_processes)
        batches: TrainBatches | TrainStream
        if is_stream(rows):
            stream = self._used(rows)
            steps = steps_of(stream, options.batch_size, options.steps_per_epoch)
            batches = TrainStream(
                stream, options.batch_size, options.seed, steps, *parts, options.shuffle_buffer
            )
        else:
            order = choose_order(rows, self.model, options, self.lengths)
            batches = TrainBatches(len(rows), options.batch_size, options.seed, *parts, order)
        return self._loader("train", rows, batches), batches

    def evaluation_loader(self, split: str, rows: Rows) -> Any:
        """A loader of all rows in order; for a split of the run it is made once per phase."""
        known = self.splits.get(split) is rows  # other rows may come under any name
        if not known:
            check_rows(rows, self.model.encoders, self.model.tasks, split)
        if known and split in self.loaders:
            return self.loaders[split]
        size = self.options.evaluation_batch_size
        part = (self.accelerator.process_index, self.accelerator.num_processes)
        batches = (
            EvaluationStream(self._used(rows), size, *part)
            if is_stream(rows)
            else EvaluationBatches(len(rows), size, *part)
        )
        loader = self._loader(split, rows, batches)
        if known:
            self.loaders[split] = loader
        return loader

    def windows(self, split: str, loader: Any, size: int) -> Iterator[list[Batch]]:
        """The batches of a loader, `size` at a time, from the start that its sampler is set to.

        Workers that were killed are replaced, and go on with the first window that is not whole.
        What could not be read is remembered.
        """
        batches = loader.batch_sampler or loader.dataset  # a stream makes its batches by itself
        loader.collate_fn.epoch.fill_(getattr(batches, "epoch", 0))
        first, done, attempts = getattr(batches, "start", None), 0, 0
        while True:
            try:
                for window in windows(read_errors(loader), size):
                    if loader.num_workers:
                        leave_dead_workers_to_the_loader()
                    for batch in window:
                        self._note_unreadable(split, batch.unreadable)
                    yield window
                    done, attempts = done + 1, 0
                break
            except RuntimeError as error:
                attempts += 1
                dead = "DataLoader worker" in str(error)
                if not dead or first is None or attempts > WORKER_ATTEMPTS:
                    raise
                self.progress.line(f"replaced killed loader workers ({first_line(error)})")
                loader._iterator = None  # the dead ones
                batches.start = first + done
        if first is not None:
            batches.start = 0

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

    def stores_of(self, split: str, rows: Rows) -> dict[str, FeatureStore]:
        """The feature stores of all modalities whose encoder is frozen now; none of a stream."""
        if is_stream(rows):
            return {}  # nothing says that a row is the same when it comes again
        frozen = {n: e for n, e in self.model.encoders.items() if not is_trainable(e)}
        known = self.splits.get(split) is rows
        stores = {}
        for name, encoder in frozen.items():
            if known and (split, name) in self.stores:
                stores[name] = self.stores[split, name]
                continue
            started = time.perf_counter()
            title = f"features of {name}, {split}"
            with self.progress.bar(title, len(rows)) as advance, unsharded(self.model):
                store, encoded = stored_features(
                    name,
                    encoder,
                    rows,
                    split,
                    not self.model.fusion.uses_tokens,
                    self.options,
                    self.accelerator,
                    advance,
                    self.stop,
                )
            stores[name] = store
            if known:
                self.stores[split, name] = store
            self.encoded_rows += encoded
            self._note_unreadable(split, {name: store.unreadable})
            if encoded:
                self.encoding_seconds += time.perf_counter() - started
        return stores

    def _used(self, rows: Rows) -> Stream:
        return as_stream(rows).select_columns([*self.model.encoders, *self.model.tasks])

    def _loader(
        self, split: str, rows: Rows, batches: Sampler[list[int]] | IterableDataset[Any]
    ) -> Any:
        training = isinstance(batches, TrainBatches | TrainStream)
        model, options = self.model, self.options
        trained = {n for n, e in model.encoders.items() if training and is_trainable(e)}
        collate = Collate(
            model.encoders,
            model.tasks,
            split=split,
            on_error=options.on_error,
            methods=self.strategy.methods if training else (),
            augment={n: change for n, change in self.augment.items() if n in trained},
            seed=options.seed,
            spare=self._spare() if training and self.accelerator.is_fsdp2 else None,
        )
        if isinstance(batches, IterableDataset):  # it makes the batches by itself
            source: dict[str, Any] = {"dataset": batches, "batch_size": None}
        else:
            numbered = NumberedRows(
                rows, [*model.encoders, *model.tasks], self.stores_of(split, rows)
            )
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

    def _spare(self) -> dict[str, Any]:
        """A value for each encoder that trains: with FSDP all processes must run it together."""
        values = {
            name: next((v for v in column(self.splits["train"], name) if v is not None), None)
            for name, encoder in self.model.encoders.items()
            if is_trainable(encoder)
        }
        return {name: value for name, value in values.items() if value is not None}

    def _note_unreadable(self, split: str, found: Mapping[str, list[int]]) -> None:
        for name, rows in found.items():
            if rows:
                self.unreadable.setdefault(split, {}).setdefault(name, set()).update(rows)


def leave_dead_workers_to_the_loader() -> None:
    """Without torch's handler, which raises wherever the loop is when a worker dies.

    The loader looks by itself while it waits for a batch.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
