"""Intervals hold the truth as often as they say, and equal SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mmtransfer.evaluation.bootstrap import bootstrap, each, mean_of


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_hold_the_true_accuracy_as_often_as_they_say(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    truth, rows, times = 0.8, 150, 1500
    right = (torch.rand(rows, times, generator=generator) < truth).double()
    # All data sets share their resamples: each interval for itself is an ordinary one.
    found = bootstrap(mean_of(right), rows, method=method, resamples=600)
    inside = sum(interval.low <= truth <= interval.high for interval in found)
    assert len(found) == times
    assert abs(inside / times - 0.95) < 0.02


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_equal_those_of_scipy(method: str) -> None:
    values = np.random.default_rng(0).exponential(size=60)
    tensor = torch.from_numpy(values)

    def deviation(rows: torch.Tensor) -> float:
        return float(tensor[rows].std(correction=0))

    found = bootstrap(each(deviation), 60, method=method, resamples=6000)[0]
    expected = stats.bootstrap(
        (values,), np.std, method=method, n_resamples=6000, rng=0
    ).confidence_interval
    width = expected.high - expected.low
    assert found.value == pytest.approx(values.std())
    assert found.low == pytest.approx(expected.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def test_strata_keep_their_rows() -> None:
    strata = torch.tensor([0] * 30 + [1] * 10)
    seen = []

    def share(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        return strata[rows].double().mean(1)

    found = bootstrap(share, 40, strata=strata, resamples=50)[0]
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)
    drawn = torch.cat(seen[1:])
    assert drawn.shape == (50, 40)
    assert drawn.unique().numel() == 40  # every row can be drawn
    assert len({tuple(sample.tolist()) for sample in drawn}) == 50


def test_the_seed_decides_and_values_that_never_vary_have_no_width() -> None:
    values = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    first, again, other = (bootstrap(mean_of(values), 50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other
    for method in ("percentile", "bca"):
        constant = bootstrap(mean_of(torch.ones(5)), 5, method=method, resamples=20)[0]
        assert (constant.low, constant.value, constant.high) == (1, 1, 1)


def test_mistakes_are_named() -> None:
    statistic = mean_of(torch.ones(5))
    with pytest.raises(ValueError, match="unknown method 'bc'.*'bca'"):
        bootstrap(statistic, 5, method="bc")
    with pytest.raises(ValueError, match="found 0 and 10"):
        bootstrap(statistic, 0, resamples=10)
    with pytest.raises(ValueError, match="level .* found 95"):
        bootstrap(statistic, 5, level=95)
    with pytest.raises(ValueError, match=r"\(5,\), found \(4,\)"):
        bootstrap(statistic, 5, strata=torch.zeros(4))
