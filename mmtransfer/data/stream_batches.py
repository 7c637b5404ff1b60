"""Micro-batches out of a stream, for each process and loader worker."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import count, islice

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mmtransfer.data.samplers import filler
from mmtransfer.data.stream import Stream
from mmtransfer.features import Row

PASS = 1_000_003  # distance between the shuffles of two passes of one epoch


class TrainStream(IterableDataset[list[tuple[int, Row]]]):
    """Micro-batches of one process out of a stream, as `[(row number, row), ...]`.

    Each epoch begins a new pass, with the shards in another order, and ends after `steps` steps; a
    part of the stream that runs out before starts over with the next pass.  Each worker of each
    process reads a part of its own, so rows and their numbers are the same for the same processes
    and workers.  Every row comes once in an epoch whose micro-batches divide evenly among these
    parts; else some come twice and up to one micro-batch of each worker is left for other epochs.

    Attributes:
        epoch: the present one
        start: steps of the present epoch that are done already; their rows are passed over, not
            decoded
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        seed: int,
        steps: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
        buffer: int = 1000,
    ) -> None:
        if batch_size % (accumulation * processes):
            raise ValueError(
                f"batch_size {batch_size} is the rows of one step over all processes; for a stream "
                f"it must be a multiple of accumulation x processes = {accumulation} x {processes}"
            )
        self.stream, self.seed, self.steps, self.buffer = stream, seed, steps, buffer
        self.size = batch_size // (accumulation * processes)  # of a micro-batch
        self.accumulation, self.rank, self.processes = accumulation, rank, processes
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()  # seen by running workers

    @property
    def epoch(self) -> int:
        return int(self.position[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.position[0] = epoch

    @property
    def start(self) -> int:
        return int(self.position[1])

    @start.setter
    def start(self, start: int) -> None:
        self.position[1] = start

    def __iter__(self) -> Iterator[list[tuple[int, Row]]]:
        worker, workers = worker_of()
        first = self.start * self.accumulation
        # The loader takes from its workers in turn, beginning with the first: after a start in the
        # middle each worker goes on where another one was.
        lane = (first + worker) % workers
        rows = self._rows(self.rank * workers + lane, self.processes * workers)
        done = len(range(lane, first, workers))
        for _ in islice(rows, done * self.size):
            pass
        for _ in range(first + worker, self.steps * self.accumulation, workers):
            yield list(islice(rows, self.size))

    def _rows(self, part: int, parts: int) -> Iterator[tuple[int, Row]]:
        """The rows of one part, pass after pass."""
        numbers = count(part, parts)
        epoch = self.epoch
        for turn in count():
            empty = True
            for row in self.stream.part(part, parts, self.seed, epoch + turn * PASS, self.buffer):
                empty = False
                yield next(numbers), row
            if empty:
                raise ValueError(
                    f"part {part + 1} of the {parts} into which the stream is split has no rows: "
                    "use fewer processes or workers"
                )


class EvaluationStream(IterableDataset[list[tuple[int, Row]]]):
    """Every row of a stream once, in order, dealt to the processes like `EvaluationBatches`.

    Every process, and every worker of it, reads the whole stream and keeps its own batches.

    Attributes:
        start: batches of this process that are left out
    """

    def __init__(self, stream: Stream, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.stream, self.batch_size = stream, batch_size
        self.rank, self.processes = rank, processes
        self.left_out = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers

    @property
    def start(self) -> int:
        return int(self.left_out)

    @start.setter
    def start(self, start: int) -> None:
        self.left_out.fill_(start)

    def __iter__(self) -> Iterator[list[tuple[int, Row]]]:
        worker, workers = worker_of()
        # The loader takes from its workers in turn: of the batches that are left, not of all.
        mine = range(self.start + worker, sys.maxsize, workers)
        rows = enumerate(self.stream)
        number, first = -1, list[tuple[int, Row]]()
        for number, batch in enumerate(iter(lambda: list(islice(rows, self.batch_size)), [])):
            first = first or batch
            turn, rank = divmod(number, self.processes)
            if rank == self.rank and turn in mine:
                yield batch
        turn, rank = divmod(number, self.processes)
        if number >= 0 and self.rank > rank and turn in mine:
            yield [(filler(index), row) for index, row in first]


def worker_of() -> tuple[int, int]:
    """Number of this loader worker, and how many there are: (0, 1) outside of workers."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)


def steps_of(stream: Stream, batch_size: int, given: int | None) -> int:
    """Optimiser steps per epoch: as given, else as many as one pass of the stream needs."""
    if given is not None:
        return given
    if stream.length is None:
        raise ValueError(
            "the train stream does not say how many rows it has: set steps_per_epoch "
            f"(found columns {', '.join(stream.column_names)})"
        )
    return math.ceil(stream.length / batch_size)
