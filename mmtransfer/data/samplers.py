"""Which rows each process sees in which step, the same for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def filler(index: int) -> int:
    """Mark a row number as one that only fills up a batch: negative, `~filler(i) == i`."""
    return ~index


class TrainBatches(Sampler[list[int]]):
    """Shuffled micro-batches of one process.

    The epoch's order is cut into *global* batches of `batch_size` rows, each one optimiser step,
    and each of these into `accumulation` x `processes` parts.  So the steps hold the same rows
    whatever the number of processes; a last, smaller batch is split as evenly as it goes.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size < accumulation * processes:
            raise ValueError(
                f"batch_size {batch_size} is the rows of one step over all processes; it must "
                f"be at least accumulation x processes = {accumulation} x {processes}"
            )
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.accumulation, self.rank, self.processes = accumulation, rank, processes
        self.epoch = 0
        self.start = 0  # steps of the epoch that are done already, and are left out

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return math.ceil(self.rows / self.batch_size)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator)
        for batch in order.split(self.batch_size)[self.start :]:
            parts = batch.tensor_split(self.accumulation * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield part.tolist() or [filler(int(batch[0]))]


class EvaluationBatches(Sampler[list[int]]):
    """Every row once, in order; whole batches are dealt to the processes in turn.

    A batch holds the same rows for any number of processes, so its numbers are the same too.
    Processes that run short repeat the first batch as fillers.
    """

    def __init__(self, rows: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.rows, self.batch_size, self.rank, self.processes = rows, batch_size, rank, processes
        self.start = 0  # batches of this process that are left out

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.rows / self.batch_size) / self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        batches = [list(b) for b in torch.arange(self.rows).split(self.batch_size)]
        for k in range(
            self.start * self.processes + self.rank, len(self) * self.processes, self.processes
        ):
            if k < len(batches):
                yield [int(i) for i in batches[k]]
            else:
                yield [filler(int(i)) for i in batches[0]]
