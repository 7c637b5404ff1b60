"""Windows of sound of one length, run together: none of them needs padding.

How many windows a group has, and of what length, are shapes of tensors: no device is asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def in_quarters(samples: int, rate: int) -> int:
    """Samples of the shortest number of quarters of a second that holds so many."""
    quarter = rate // 4
    return math.ceil(samples / quarter) * quarter


def group_windows(
    sound: Tensor, lengths: Sequence[int], rate: int
) -> tuple[dict[str, Tensor], list[int]]:
    """Windows (W, L) of so many samples, longest first: `sound`, `sound_1`, ... (N, L') each.

    L' is a number of quarters of a second.  -> the groups, and which window is where in them
    """
    rounded = [in_quarters(length, rate) for length in lengths]
    order = sorted(range(len(rounded)), key=lambda w: -rounded[w])
    sound = F.pad(sound, (0, max(rounded) - sound.shape[1]))
    groups = {}
    for k, length in enumerate(sorted(set(rounded), reverse=True)):
        which = [w for w in order if rounded[w] == length]
        groups["sound" if k == 0 else f"sound_{k}"] = sound[which, :length]
    return groups, order


def renumbered(windows: Tensor, order: Sequence[int]) -> Tensor:
    """What `index_windows` gave, after the windows were put in another order."""
    place = torch.empty(len(order), dtype=torch.int64)
    place[list(order)] = torch.arange(len(order))
    return torch.where(windows < 0, windows, place[windows.clamp_min(0)])


def stack_groups(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens (N, T', D) of each group, longest first -> (W, T, D), mask (W, T) of those there."""
    longest = groups[0].shape[1]
    short = [longest - group.shape[1] for group in groups]
    tokens = [F.pad(group, (0, 0, 0, s)) for group, s in zip(groups, short, strict=True)]
    there = [
        F.pad(group.new_ones(group.shape[:2], dtype=torch.bool), (0, s))
        for group, s in zip(groups, short, strict=True)
    ]
    return torch.cat(tokens), torch.cat(there)


def by_length(
    x: Tensor, mask: Tensor, lengths: Sequence[int], run: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run windows (W, T, D) of one length together -> (W, T', D'), in the same order.

    mask (W, T): what is there of each window; lengths: how much that is, as the host knows it
    """
    order = mask.sum(1).argsort(descending=True, stable=True)
    sizes = [(n, lengths.count(n)) for n in sorted(set(lengths), reverse=True)]
    groups = x[order].split([count for _, count in sizes])
    done = [run(group[:, :n]) for group, (n, _) in zip(groups, sizes, strict=True)]
    return stack_groups(done)[0][order.argsort()]
