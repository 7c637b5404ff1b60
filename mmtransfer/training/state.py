"""The state of a run: set up, looked at, kept in checkpoints and taken up again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from mmtransfer.data.rows import Rows, column
from mmtransfer.data.stream import is_stream
from mmtransfer.evaluation.metrics import Collected, collect, compute_metrics
from mmtransfer.features import Batch, Outputs
from mmtransfer.model import ON_DEMAND, TransferModel
from mmtransfer.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    random_state,
    save_model,
    set_random_state,
)
from mmtransfer.training.data import TrainingData
from mmtransfer.training.identity import identity, setting
from mmtransfer.training.log import Log
from mmtransfer.training.optimisation import Optimisation, Step
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.progress import Progress
from mmtransfer.training.record import fingerprints
from mmtransfer.training.resume import accepted, restore_data
from mmtransfer.training.setup import (
    make_accelerator,
)
from mmtransfer.training.sharding import is_sharded, load_whole, state_of
from mmtransfer.training.stop import Stopped, StopSignal
from mmtransfer.transfer.adapters import add_adapters, readable
from mmtransfer.transfer.base import Strategy, check_plan, check_rates

COUNTED = ("seconds", "skipped_steps", "before")
FURTHER = ("unlabelled", "source")


@dataclass
class Position:
    """How far a run has come: phase, epochs of it that ended, steps of the present epoch.

    best, stale: best validation score of the phase, and epochs since then
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    stale: int = 0


class RunState:
    """Model, data and what a run knows of itself; all but the loop."""

    def __init__(
        self,
        model: TransferModel,
        train: Rows,
        validation: Rows | None,
        strategy: Strategy,
        options: TrainingOptions | None = None,
        output: Path | None = None,
        title: str = "",
        stop: StopSignal | None = None,
        further: Mapping[str, Rows] | None = None,
    ) -> None:
        """
        further: rows "unlabelled" of the target, for methods that need them, and labelled rows of
            the "source", on which `before` and `fit` tell what is forgotten
        """
        self.model, self.strategy = model, strategy
        self.options = options or TrainingOptions()
        self.output = output
        self.accelerator = make_accelerator(self.options, output)
        shown = self.options.progress and self.accelerator.is_main_process
        self.progress = Progress(shown, title)
        self.stop = stop or StopSignal()
        splits = {"train": train} | ({} if validation is None else {"validation": validation})
        splits |= {name: rows for name, rows in (further or {}).items() if name in FURTHER}
        if "unlabelled" not in strategy.splits:
            splits.pop("unlabelled", None)
        self.data = TrainingData(
            model, splits, strategy, self.options, self.accelerator, self.progress, self.stop
        )
        check_plan(strategy, model, self.options.seed, splits)
        if "second_pass" in strategy.needs and self.options.precision == "fp16":
            raise ValueError("a method that goes through a step twice cannot scale fp16 losses")
        self._adapt()
        self._provide(strategy.needs)
        self.counts: dict[str, dict[str, int]] = {}  # of parameters, after `fit`
        self.fingerprints: Mapping[str, Mapping[str, Any]] = {}  # of the data, once they are known
        self.saved: Checkpoint | None = None  # taken up, but not all of it yet
        self.log = Log(self.accelerator, output, model.tasks)
        self.checkpoints = None
        if output is not None:
            directory, keep = output / "checkpoints", self.options.keep_checkpoints
            self.checkpoints = Checkpoints(directory, keep, self.accelerator)
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []  # of every step
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.before: dict[str, dict[str, float]] = {}  # metrics on the source, before training
        self.best_score, self.best_state = -math.inf, dict[str, Tensor]()
        self.trained: set[str] = set()  # parameters that any phase so far trains
        self.frozen = ""  # digest of the others
        self.position, self.skipped_steps = Position(), 0
        self.accumulation = self.options.accumulation
        self.pending: list[Step] = []  # steps whose loss nobody has looked at yet
        self.optimisation: Optimisation | None = None  # of the present phase
        self.last_checkpoint = time.monotonic()
        self.model.to(self.accelerator.device)

    def _adapt(self) -> None:
        if not self.strategy.adapters:
            return
        if self.accelerator.is_fsdp2:
            raise ValueError("adapters need encoders that are whole: use DDP instead of FSDP")
        rows, encoders = self.data.splits["train"], self.model.encoders
        samples = {n: readable(encoder, column(rows, n)) for n, encoder in encoders.items()}
        add_adapters(self.model, self.strategy.adapters, samples, self.options.seed)

    def _provide(self, needs: set[str]) -> None:
        if "numbered_rows" in needs and is_stream(self.data.splits["train"]):
            raise ValueError("a method of the strategy needs rows with fixed numbers, not a stream")
        demanded = needs & set(ON_DEMAND)
        if demanded and is_sharded(self.model):
            raise ValueError("FSDP has split the model in an earlier run: load it anew")
        self.model.provide(demanded, self.options.seed)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.options.seed)  # the same on all processes
            for method in self.strategy.methods:
                method.build(self.model)
                if method.module is not None:
                    method.module.to(self.accelerator.device)
        check_rates(self.strategy)

    @property
    def step(self) -> int:
        """Optimiser steps so far."""
        return len(self.losses) + len(self.pending)

    def _trained_state(self) -> dict[str, Tensor]:
        """What was ever trained, and all buffers, as copies on the CPU; all processes together."""
        return state_of(self.model, self.trained | {n for n, _ in self.model.named_buffers()})

    def score(self, metrics: Mapping[str, Mapping[str, float]]) -> float:
        """What the best epoch is chosen by: the mean over tasks of their main metric."""
        scores = [
            metrics[name][task.score]
            for name, task in self.model.tasks.items()
            if task.score in metrics[name]
        ]
        return sum(scores) / len(scores) if scores else -math.inf

    # -- checkpoints ------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write a checkpoint, on all processes together; nothing without an output directory."""
        if self.checkpoints is None:
            return
        state = {
            "identity": self.identity,
            "setting": self._setting(),
            "position": asdict(self.position),
            "optimisation": self.optimisation.state() if self.optimisation else None,
            "methods": [method.state_dict() for method in self.strategy.methods],
            "modules": [
                None if method.module is None else method.module.state_dict()
                for method in self.strategy.methods
            ],
            "accumulation": self.accumulation,
            "trained": sorted(self.trained),
            "frozen": self.frozen,
            "history": self.history,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "best_score": self.best_score,
            **{name: getattr(self, name) for name in COUNTED},
        }
        mine = {"random": random_state(), "data": self.data.state_dict()}
        weights = {"trained": self._trained_state(), "best": self.best_state}
        self.checkpoints.write(self.step, weights, state, mine)
        self.last_checkpoint = time.monotonic()

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run; all processes ask together."""
        columns = [*self.model.encoders, *self.model.tasks]
        known = self.fingerprints or fingerprints(self.data.splits, columns)
        data = {split: known[split] for split in self.data.splits}
        return identity(self.model, self.strategy, self.options, data)

    def _setting(self) -> dict[str, Any]:
        return setting(self.options, self.accelerator, self.data.splits["train"])

    def take_up(self) -> None:
        """Weights and position of the newest checkpoint, if there is one; `fit` does the rest.

        Raises `ValueError` where it is of another run.
        """
        if self.checkpoints is None:
            raise ValueError("there is no output directory, and so nothing to resume from")
        saved = self.saved = accepted(self.checkpoints.newest(), self.identity, self.model)
        if saved is None:
            return
        state = saved.state("training")
        load_whole(self.model, saved.weights("trained"))
        self.best_state = saved.weights("best")
        self.position = Position(**state["position"])
        asked = state["setting"]["accumulation"] == self.options.accumulation
        if asked and saved.processes == self.accelerator.num_processes:
            self.accumulation = state["accumulation"]  # as memory allowed
        self.trained, self.history = set(state["trained"]), state["history"]
        self.losses, self.best_score = state["losses"].tolist(), state["best_score"]
        for name in COUNTED:
            setattr(self, name, state[name])
        kept = zip(self.strategy.methods, state["methods"], state["modules"], strict=True)
        for method, known, weights in kept:
            method.load_state_dict(known)
            if method.module is not None:
                method.module.load_state_dict(weights)

    def _restore(self, saved: Checkpoint) -> None:
        """Optimiser, schedule and random state; last of all, so that nothing draws in between."""
        found = saved.state("training")["optimisation"]
        if found is not None and self.optimisation is not None:
            self.optimisation.load_state(found)
        restore_data(saved, self.data, self.accelerator)
        if saved.processes == self.accelerator.num_processes:
            mine = saved.state(f"rank-{self.accelerator.process_index}")
            set_random_state(mine["random"])
        else:
            set_seed(self.options.seed + self.step, device_specific=True)

    def leave_if_asked(self) -> None:
        """After a SIGTERM of any process: out, on all of them together; all ask together."""
        asked = torch.tensor(float(self.stop.requested), device=self.accelerator.device)
        if self.accelerator.reduce(asked) > 0:
            self._leave()

    def _leave(self) -> None:
        """After a SIGTERM: a checkpoint, and out, on all processes together."""
        if self.optimisation is not None:
            self.checkpoint()
            self.optimisation.release()
            self.optimisation = None
        kept = "go on with --resume" if self.checkpoints else "without an output nothing is kept"
        message = f"stopped by SIGTERM after step {self.step}: {kept}"
        raise Stopped(message)

    # -- looking at the result --------------------------------------------------------------------

    def evaluate(self, rows: Rows, split: str = "test") -> dict[str, dict[str, float]]:
        """Metrics of the present weights, the same for any number of processes."""
        return compute_metrics(self.model.tasks, self.collect(rows, split))

    def collect(self, rows: Rows, split: str = "test") -> Collected:
        """Logits of every row, once, in order, on all processes."""
        loader = self.data.evaluation_loader(split, rows)
        started = time.perf_counter()
        training = self.model.training
        self.model.eval()
        collected = collect(
            self._outputs, self._until_asked(loader, split), self.accelerator.device
        )
        self.model.train(training)
        self.seconds["evaluation"] += time.perf_counter() - started
        self.leave_if_asked()
        return collected

    def _outputs(self, batch: Batch) -> Outputs:
        with self.accelerator.autocast():  # what reads the batches must not inherit it
            return self.model(batch.inputs, len(batch))

    def _until_asked(self, loader: Any, split: str) -> Iterator[Batch]:
        for (batch,) in self.data.windows(split, loader, 1):
            yield batch
            if self.stop.requested:
                return

    def save(self, directory: Path) -> None:
        """Write the model, from the main process, while the others wait; `OSError` for all."""
        save_model(self.model, directory, self.accelerator, resumable=self.checkpoints is not None)

    def close(self) -> None:
        """Unfreeze the model, take off what only training needs, and end the trackers.

        The processes live on (see `end_processes`).
        """
        self.model.requires_grad_(True)
        self.model.provide(())
        self.data.loaders.clear()
        for tracker in self.accelerator.trackers:
            tracker.finish()
