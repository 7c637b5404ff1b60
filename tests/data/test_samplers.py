"""Every row once, and the same steps whatever the number of processes."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtransfer.data.samplers import EvaluationBatches, TrainBatches, filler

sizes = st.integers(1, 60)


def steps_of(rows: int, batch: int, accumulation: int, processes: int, epoch: int = 0):
    """Rows of each step, in order, over all processes and micro-batches, without fillers."""
    ranks = []
    for rank in range(processes):
        sampler = TrainBatches(rows, batch, 7, accumulation, rank, processes)
        sampler.epoch = epoch
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    steps = []
    for first in range(0, len(ranks[0]), accumulation):
        micro = range(first, first + accumulation)
        parts = [ranks[r][m] for m in micro for r in range(processes)]
        steps.append([i for i in chain(*parts) if i >= 0])
    return steps


@given(sizes, st.integers(6, 20), st.sampled_from([(1, 2), (2, 1), (1, 3), (2, 3), (3, 2)]))
def test_steps_hold_the_same_rows_for_any_number_of_processes(rows, batch, shape):
    accumulation, processes = shape
    alone = steps_of(rows, batch, 1, 1)
    assert steps_of(rows, batch, accumulation, processes) == alone
    assert sorted(chain(*alone)) == list(range(rows))


@given(sizes, st.integers(1, 20), st.integers(1, 4))
def test_evaluation_deals_every_row_once(rows, batch, processes):
    ranks = [list(EvaluationBatches(rows, batch, r, processes)) for r in range(processes)]
    assert len({len(batches) for batches in ranks}) == 1
    real = [i for batches in ranks for b in batches for i in b if i >= 0]
    assert sorted(real) == list(range(rows))
    alone = {tuple(b) for b in EvaluationBatches(rows, batch)}
    assert {tuple(b) for batches in ranks for b in batches if b[0] >= 0} == alone


def test_epochs_differ_and_repeat():
    assert steps_of(40, 8, 1, 1, epoch=0) != steps_of(40, 8, 1, 1, epoch=1)
    assert steps_of(40, 8, 1, 1, epoch=1) == steps_of(40, 8, 1, 1, epoch=1)


@given(st.integers(0, 10**9))
def test_fillers_are_negative_and_point_back(index):
    assert filler(index) < 0
    assert ~filler(index) == index


def test_a_batch_smaller_than_its_parts_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 3 .* 2 x 2"):
        TrainBatches(10, 3, 0, accumulation=2, processes=2)
