"""Orders of the training rows: called with an epoch, they give row numbers, one per draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

#: epoch -> (N,) int64 row numbers, the same in every process
Order = Callable[[int], Tensor]


def generator_of(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def times_before(rows: Tensor) -> Tensor:
    """(N,) row numbers -> (N,) how often each has come before."""
    by_row = rows.argsort(stable=True)
    ordered = rows[by_row]
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(rows).scatter_(0, by_row, torch.arange(len(rows)) - first)


class Shuffled:
    """Every row once, in any order."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def __call__(self, epoch: int) -> Tensor:
        return torch.randperm(self.rows, generator=generator_of(self.seed, epoch))


class BlockShuffled:
    """Every row once; the blocks in any order, and the rows of `window` blocks at a time mixed.

    So reading stays among a few blocks of a large data set (row groups of a file, say).

    blocks: numbers of the first row of each block, and of the row behind the last
    """

    def __init__(self, blocks: Sequence[int], seed: int, window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 block, found {window}")
        self.blocks, self.seed, self.window = blocks, seed, window

    def __call__(self, epoch: int) -> Tensor:
        generator = generator_of(self.seed, epoch)
        spans = list(pairwise(self.blocks))
        chosen = torch.randperm(len(spans), generator=generator).tolist()
        parts = [torch.arange(0)]
        for first in range(0, len(chosen), self.window):
            rows = torch.cat([torch.arange(*spans[b]) for b in chosen[first : first + self.window]])
            parts.append(rows[torch.randperm(len(rows), generator=generator)])
        return torch.cat(parts)


class LengthGrouped:
    """Every row once; the rows of a batch are of similar length, so that little is padding.

    Shuffled rows are sorted by length within chunks, then batches are shuffled (as transformers'
    `group_by_length` does).  A chunk is `chunk` batches, but at most a quarter of the rows, so that
    the batches of a small data set differ from epoch to epoch.  A last, smaller batch comes last.

    lengths: (N,) of each row, in any unit
    """

    def __init__(self, lengths: Tensor, batch_size: int, seed: int, chunk: int = 50) -> None:
        self.lengths, self.batch_size, self.seed, self.chunk = lengths, batch_size, seed, chunk

    def __call__(self, epoch: int) -> Tensor:
        generator = generator_of(self.seed, epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        quarter = len(self.lengths) // (4 * self.batch_size)
        chunks = shuffled.split(max(2, min(self.chunk, quarter)) * self.batch_size)
        rows = torch.cat([c[self.lengths[c].argsort(descending=True, stable=True)] for c in chunks])
        whole = len(rows) // self.batch_size
        batches = rows[: whole * self.batch_size].view(whole, self.batch_size)
        mixed = batches[torch.randperm(whole, generator=generator)].flatten()
        return torch.cat([mixed, rows[whole * self.batch_size :]])


class Balanced:
    """Rows drawn with replacement so that small classes come up more often; N draws.

    labels: (N,) class of each row, negative where unlabelled; unlabelled rows keep their share
    power: 1 makes all classes equally likely, 0 leaves them as they are, 0.5 is square-root
        sampling (Mahajan et al., ECCV 2018)
    """

    repeats = True

    def __init__(self, labels: Tensor, seed: int, power: float = 1.0) -> None:
        self.labels, self.seed, self.power = labels, seed, power
        labelled = labels >= 0
        weights = torch.ones(len(labels), dtype=torch.float64)
        if labelled.any():
            counts = torch.bincount(labels[labelled]).double()
            weights[labelled] = counts[labels[labelled]] ** -power
            weights[labelled] *= labelled.sum() / weights[labelled].sum()
        self.ends = weights.cumsum(0)

    def __call__(self, epoch: int) -> Tensor:
        generator = generator_of(self.seed, epoch)
        draws = torch.rand(len(self.labels), dtype=torch.float64, generator=generator)
        # Not torch.multinomial, which takes 2^24 rows at most.
        rows = torch.searchsorted(self.ends, draws * self.ends[-1], right=True)
        return rows.clamp_max(len(self.labels) - 1)
