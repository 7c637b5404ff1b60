"""The distance of covariances against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import build_method
from mmtransfer.methods.coral import covariance


def loss_of(source: torch.Tensor, target: torch.Tensor, real: list[bool], weight: float = 1.0):
    index = torch.tensor([i if r else ~i for i, r in enumerate(real)])
    batch = Batch({}, {}, index, unlabelled=Batch({}, {}, torch.arange(len(target))))
    outputs = Outputs({}, fused=source, unlabelled=Outputs({}, fused=target))
    method = build_method({"name": "coral", "weight": weight})
    return method.on_loss(torch.tensor(3.0), None, batch, outputs)


def test_covariances_are_those_of_numpy_and_fillers_do_not_count():
    rows = np.random.default_rng(0).normal(size=(7, 3))
    real = torch.tensor([True] * 5 + [False] * 2)
    found = covariance(torch.tensor(rows), real)
    np.testing.assert_allclose(found, np.cov(rows[:5], rowvar=False))


def test_the_loss_is_the_squared_difference_over_4_d_squared():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(6, 3)), rng.normal(size=(9, 3)) * 2
    difference = np.cov(source[:5], rowvar=False) - np.cov(target, rowvar=False)
    expected = 3 + 7 * (difference**2).sum() / (4 * 9)
    real = [True] * 5 + [False]
    found = loss_of(torch.tensor(source), torch.tensor(target), real, 7.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_means_do_not_count_and_single_rows_say_nothing():
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert float(loss_of(rows, rows + 4, [True] * 5)) == pytest.approx(3, abs=1e-6)
    assert float(loss_of(rows, rows[:1], [True] * 5)) == 3
    assert float(loss_of(rows, rows, [True] + [False] * 4)) == 3
