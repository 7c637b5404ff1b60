"""Maximum mean discrepancy against its definition, in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmtransfer.methods.mmd import discrepancy, squared_distances


def by_definition(source: np.ndarray, target: np.ndarray, kernels: int) -> float:
    rows = [*source, *target]
    squares = [[float(((x - y) ** 2).sum()) for y in rows] for x in rows]
    n, count = len(source), len(rows)
    # torch takes the lower of two middle numbers, and pairs come twice
    pairs = sorted(squares[i][j] for i in range(count) for j in range(count) if i != j)
    median = pairs[(len(pairs) - 1) // 2]

    def mean(one, other):
        values = [
            math.exp(-squares[i][j] / (median * 2 ** (k - (kernels - 1) / 2)))
            for i in one
            for j in other
            for k in range(kernels)
            if i != j
        ]
        return sum(values) / len(values)

    here, there = range(n), range(n, count)
    return mean(here, here) + mean(there, there) - 2 * mean(here, there)


@pytest.mark.parametrize("kernels", [1, 5])
def test_it_is_what_its_definition_says_and_fillers_do_not_count(kernels):
    rng = np.random.default_rng(0)
    source, target = rng.normal(0, 1, (6, 4)), rng.normal(0.7, 2, (9, 4))
    expected = by_definition(source, target, kernels)
    more = torch.tensor(np.concatenate([source, 100 * source[:2]]))
    here = torch.tensor([True] * 6 + [False] * 2)
    there = torch.ones(9, dtype=torch.bool)
    found = discrepancy(more, here, torch.tensor(target), there, kernels)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_it_is_0_on_average_for_one_distribution_and_larger_the_farther_two_are():
    rng = torch.Generator().manual_seed(0)
    whole = torch.ones(8, dtype=torch.bool)

    def mean(shift):
        drawn = [torch.randn(2, 8, 3, generator=rng) for _ in range(400)]
        return np.mean([float(discrepancy(a, whole, b + shift, whole, 5)) for a, b in drawn])

    found = [mean(shift) for shift in (0.0, 0.5, 1.0)]
    assert found[0] == pytest.approx(0, abs=0.01)
    assert found[0] < found[1] - 0.02 < found[2] - 0.05


def test_gradients_draw_the_two_sides_together():
    rng = torch.Generator().manual_seed(0)
    source = torch.randn(16, 3, generator=rng).requires_grad_()
    target = (torch.randn(16, 3, generator=rng) + 2).requires_grad_()
    whole = torch.ones(16, dtype=torch.bool)
    discrepancy(source, whole, target, whole, 5).backward()
    assert (source.grad.mean(0) < 0).all()  # a step against it moves them up
    assert (target.grad.mean(0) > 0).all()
    assert torch.allclose(source.grad.sum(0) + target.grad.sum(0), torch.zeros(3), atol=1e-6)


def test_distances_far_from_the_origin_keep_their_digits():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.cdist(rows.double(), rows.double()).square().float()
    torch.testing.assert_close(squared_distances(rows + 512), expected, atol=1e-3, rtol=1e-3)


def test_equal_rows_and_single_ones_give_numbers():
    same = torch.ones(3, 2, requires_grad=True)
    whole = torch.ones(3, dtype=torch.bool)
    one = torch.tensor([True, False, False])
    for here in (whole, one, ~whole):
        found = discrepancy(same, here, same, whole, 5)
        assert found.item() == 0
        (gradient,) = torch.autograd.grad(found, same)
        assert torch.isfinite(gradient).all()
