"""Which rows each process sees in which step, the same for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from mmtransfer.data.orders import Order, Shuffled, times_before
from mmtransfer.features import Draw


def filler(index: int) -> int:
    """Mark a row number as one that only fills up a batch: negative, `~filler(i) == i`."""
    return ~index


class TrainBatches(Sampler[list[int]]):
    """Micro-batches of one process, in the rows' order of an epoch (by default shuffled).

    The epoch's order is cut into *global* batches of `batch_size` rows, each one optimiser step,
    and each of these into `accumulation` x `processes` parts.  So the steps hold the same rows
    whatever the number of processes; a last, smaller batch is split as evenly as it goes.

    Attributes:
        epoch: the present one
        start: steps of the present epoch that are done already; batches begin behind them
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
        order: Order | None = None,
    ) -> None:
        if batch_size < accumulation * processes:
            raise ValueError(
                f"batch_size {batch_size} is the rows of one step over all processes; it must "
                f"be at least accumulation x processes = {accumulation} x {processes}"
            )
        self.rows, self.batch_size = rows, batch_size
        self.accumulation, self.rank, self.processes = accumulation, rank, processes
        self.order: Order = order or Shuffled(rows, seed)
        self.epoch = 0
        self.start = 0  # steps of the epoch that are done already, and are left out

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return math.ceil(self.rows / self.batch_size)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        repeats = getattr(self.order, "repeats", False)
        before = times_before(order) if repeats else torch.zeros_like(order)
        drawn = torch.stack([order, before], dim=1)[self.start * self.batch_size :]
        for batch in drawn.split(self.batch_size) if len(drawn) else ():
            parts = batch.tensor_split(self.accumulation * self.processes)
            for part in parts[self.rank :: self.processes]:
                rows = [Draw(row, times) if times else row for row, times in part.tolist()]
                yield rows or [filler(int(batch[0, 0]))]


class EndlessBatches(TrainBatches):
    """The same without an end: `start` counts the steps of a run, over all epochs."""

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch, self.start = divmod(self.start, self.steps)
        while True:
            yield from super().__iter__()
            self.epoch, self.start = self.epoch + 1, 0


class EvaluationBatches(Sampler[list[int]]):
    """Every row once, in order; whole batches are dealt to the processes in turn.

    A batch holds the same rows for any number of processes, so its numbers are the same too.
    Processes that run short repeat the first batch as fillers.

    seed: of a random order instead
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        seed: int | None = None,
    ) -> None:
        self.rows, self.batch_size, self.rank, self.processes = rows, batch_size, rank, processes
        self.order: Sequence[int] = range(rows)
        if seed is not None:
            self.order = np.random.default_rng(seed).permutation(rows).tolist()
        self.start = 0  # batches of this process that are left out

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.rows / self.batch_size) / self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.order[: self.batch_size]
        for k in range(
            self.start * self.processes + self.rank, len(self) * self.processes, self.processes
        ):
            batch = self.order[k * self.batch_size : (k + 1) * self.batch_size]
            yield list(batch) or [filler(i) for i in first]


class GivenBatches(Sampler[list[int]]):
    """Batches as they are."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches
        self.start = 0  # batches that are left out

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches[self.start :]
