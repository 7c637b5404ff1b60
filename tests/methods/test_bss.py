"""BSS: singular values by hand, and what the gradient does to them."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.bss import BSS, shrinkage


def test_the_smallest_singular_values_are_squared_and_summed():
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(7, 3))[0] for _ in range(2))
    x = left @ torch.diag(torch.tensor([5.0, 2.0, 1.0])) @ right.T
    x = x @ right  # (7, 3), the same singular values
    assert float(shrinkage(x, 1)) == pytest.approx(1.0, rel=1e-4)
    assert float(shrinkage(x, 2)) == pytest.approx(5.0, rel=1e-4)
    assert float(shrinkage(x, 9)) == pytest.approx(float(x.square().sum()), rel=1e-4)


def test_a_step_down_shrinks_the_weakest_direction_alone():
    torch.manual_seed(0)
    x = torch.randn(5, 4, requires_grad=True)
    shrinkage(x, 1).backward()
    before = torch.linalg.svdvals(x.detach())
    after = torch.linalg.svdvals(x.detach() - 0.25 * x.grad)
    torch.testing.assert_close(after[:3], before[:3], atol=1e-5, rtol=1e-5)
    assert float(after[3]) == pytest.approx(0.5 * float(before[3]), rel=1e-4)


def test_equal_rows_have_a_finite_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    shrinkage(x, 2).backward()
    assert torch.isfinite(x.grad).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="k of bss must be at least 1, found 0"):
        BSS(k=0)
    with pytest.raises(ValueError, match="weight of bss must be at least 0, found -1"):
        BSS(weight=-1)
