"""What would wait for a GPU is found without one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmtransfer.testing import ForbidSyncs, SyncError

X = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
WAITING: dict[str, Callable[[], object]] = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X.sum()),
    "bool": lambda: bool(X.any()),
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "cpu": lambda: X.cpu(),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 0),
    "mask": lambda: X[X > 0],
    "masked_select": lambda: X.masked_select(X > 0),
    "put": lambda: X.clone().__setitem__(X > 0, torch.ones(2)),
    "unique": lambda: X.unique(),
    "equal": lambda: torch.equal(X, X),
    "repeat": lambda: X.repeat_interleave(torch.tensor([1, 2]), 0),
    "range": lambda: torch.arange(int(X.max())),
}
FREE: dict[str, Callable[[], Tensor]] = {
    "fill": lambda: X.clone().__setitem__(X > 0, 0.0) or X,
    "where": lambda: torch.where(X > 0, X, 0),
    "rows": lambda: X[torch.tensor([1, 0])],
    "shape": lambda: torch.arange(len(X)),
    "sort": lambda: X[X.sum(1).argsort()],
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str) -> None:
    with pytest.raises(SyncError, match="would wait for the device"), ForbidSyncs():
        WAITING[name]()
    WAITING[name]()  # outside nothing is forbidden


@pytest.mark.parametrize("name", FREE)
def test_the_rest_is_let_through(name: str) -> None:
    expected = FREE[name]()
    with ForbidSyncs():
        found = FREE[name]()
    torch.testing.assert_close(found, expected)


def test_backward_passes_are_looked_at_too() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float(gradient.sum())

    x = torch.ones(2, requires_grad=True)
    with pytest.raises(SyncError), ForbidSyncs():
        Reads.apply(x).sum().backward()
