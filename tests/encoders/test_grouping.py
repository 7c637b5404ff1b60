"""Windows that run together by length come back in their places, each as if it were alone."""

from typing import Any

import numpy as np
import pytest
import torch

from mmtransfer.data.collate import pad_tokens
from mmtransfer.encoders.decoding import index_windows, join_windows, part_windows
from mmtransfer.encoders.grouping import by_length, group_windows, renumbered, stack_groups
from mmtransfer.features import Features

RATE = 8  # a quarter of a second is 2 samples
#: of each window, with more groups than one digit can number
LENGTHS = [3, 1, 40, 8, *range(2, 34, 2), 1]


def windows(lengths: list[int]) -> torch.Tensor:
    """(W, L): number and place of each sample, zeros behind the end."""
    places = torch.arange(1, max(lengths) + 1).expand(len(lengths), -1)
    numbered = 100 * torch.arange(len(lengths)).unsqueeze(1) + places
    return torch.where(places <= torch.tensor(lengths).unsqueeze(1), numbered, 0)


def test_groups_hold_each_window_once_at_its_quarters_of_a_second() -> None:
    sound = windows(LENGTHS)
    groups, order = group_windows(sound, LENGTHS, RATE)
    sides = [group.shape[1] for group in groups.values()]
    assert sides == sorted({n + n % 2 for n in LENGTHS}, reverse=True)
    tokens, there = stack_groups([group.unsqueeze(-1) for group in groups.values()])
    assert torch.equal(tokens[:, :, 0], sound[order])
    assert there.sum(1).tolist() == [n + n % 2 for n in (LENGTHS[w] for w in order)]
    counts = [2, 1, len(LENGTHS) - 3]
    index = index_windows(counts)
    moved = renumbered(index, order)
    mask = tokens[:, :, 0] > 0
    joined = join_windows(tokens, mask, moved)
    expected = join_windows(sound.unsqueeze(-1), sound > 0, index)
    assert all(map(torch.equal, joined, expected))


def test_runs_by_length_see_no_padding_and_keep_the_order() -> None:
    x = windows(LENGTHS).double().unsqueeze(-1).requires_grad_()
    seen = []

    def run(group: torch.Tensor) -> torch.Tensor:
        assert (group > 0).all()
        seen.append(len(group))
        return group * group.shape[1]

    found = by_length(x, x.detach()[..., 0] > 0, LENGTHS, run)
    assert sum(seen) == len(LENGTHS)
    assert len(seen) == len(set(LENGTHS))
    factors = torch.tensor(LENGTHS).view(-1, 1, 1)
    torch.testing.assert_close(found, x * factors)
    found.sum().backward()
    real = x.detach() > 0
    torch.testing.assert_close(x.grad, torch.where(real, factors, 0).double())


@pytest.mark.parametrize("known", [True, False])
def test_parted_windows_are_those_that_were_joined(known: bool) -> None:
    lengths = [4, 4, 1, 4, 2]  # of the windows of three rows, and of one without sound
    tokens = torch.randn(5, 4, 2)
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    index = torch.tensor([[0, 1, 2], [3, -1, -1], [-1, -1, -1], [4, -1, -1]])
    joined = join_windows(tokens, mask, index)
    parted = part_windows(Features(*joined, (9, 4, 0, 2) if known else None), 4)
    found, real, again, sizes = parted
    assert torch.equal(real, mask)
    assert torch.equal(found[mask], tokens[mask])
    assert torch.equal(again, index)
    assert sizes == lengths


@pytest.mark.slow
def test_a_compiler_does_not_begin_anew_with_other_lengths() -> None:
    made = []

    def backend(graph: Any, example: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    twice = torch.compile(lambda x: 2 * part_windows(x, 4)[0], backend=backend)
    for lengths in [(9, 3), (6, 13), (8, 7), (14, 2), (11, 10)]:
        found = twice(pad_tokens([np.ones((n, 2)) for n in lengths]))
        assert found.sum() == 4 * sum(lengths)
    assert 0 < len(made) < 4
