"""Orders of the training rows: what each promises, for any data and any number of processes."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtransfer.data.orders import (
    Balanced,
    BlockShuffled,
    LengthGrouped,
    Shuffled,
    times_before,
)
from mmtransfer.data.samplers import TrainBatches
from mmtransfer.features import draw_key

EPOCHS = st.integers(0, 5)


def orders(rows: int, batch: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(rows, generator=generator)
    cuts = sorted(set(torch.randint(0, rows, (4,), generator=generator).tolist()) - {0})
    return [
        Shuffled(rows, seed),
        BlockShuffled([0, *cuts, rows], seed, window=2),
        LengthGrouped(lengths, batch, seed, chunk=3),
    ]


@given(st.integers(1, 80), st.integers(1, 12), st.integers(0, 99), EPOCHS)
@settings(deadline=None)
def test_every_row_comes_once(rows, batch, seed, epoch):
    for order in orders(rows, batch, seed):
        found = order(epoch)
        assert found.dtype == torch.int64
        assert sorted(found.tolist()) == list(range(rows)), type(order)
        assert torch.equal(found, order(epoch))


def test_epochs_and_seeds_differ():
    labels = torch.arange(60) % 3
    for seed in (0, 1):
        for order in (*orders(60, 4, seed), Balanced(labels, seed)):
            assert not torch.equal(order(0), order(1))
    pairs = zip(orders(60, 4, 0), orders(60, 4, 1), strict=True)
    assert not any(torch.equal(one(0), other(0)) for one, other in pairs)


def test_shuffled_is_what_it_has_always_been():
    """Runs of earlier versions can be repeated."""
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 2)
    assert torch.equal(Shuffled(50, 7)(2), torch.randperm(50, generator=generator))
    batches = TrainBatches(50, 8, 7)
    batches.epoch = 2
    assert list(chain(*batches)) == Shuffled(50, 7)(2).tolist()


@given(
    st.integers(1, 60),
    st.integers(6, 15),
    st.sampled_from([(1, 2), (2, 1), (1, 3), (2, 3)]),
    EPOCHS,
)
@settings(deadline=None)
def test_steps_hold_the_same_rows_for_any_number_of_processes(rows, batch, shape, epoch):
    accumulation, processes = shape
    for order in (*orders(rows, batch, 3), Balanced(torch.arange(rows) % 4, 3)):
        alone = TrainBatches(rows, batch, 3, order=order)
        alone.epoch = epoch
        parts = [
            TrainBatches(rows, batch, 3, accumulation, r, processes, order)
            for r in range(processes)
        ]
        for part in parts:
            part.epoch = epoch
        ranks = [list(part) for part in parts]
        for step, expected in enumerate(alone):
            micro = range(step * accumulation, (step + 1) * accumulation)
            found = [i for m in micro for rank in ranks for i in rank[m] if i >= 0]
            assert found == expected


@given(st.integers(1, 60), st.integers(4, 15), st.integers(1, 2), st.integers(1, 2), st.data())
@settings(deadline=None)
def test_a_start_leaves_out_whole_steps(rows, batch, accumulation, processes, data):
    for order in orders(rows, batch, 5):
        batches = TrainBatches(rows, batch, 5, accumulation, processes - 1, processes, order)
        batches.epoch = 1
        whole = list(batches)
        start = data.draw(st.integers(0, batches.steps))
        batches.start = start
        assert list(batches) == whole[start * accumulation :]
        assert len(batches) == len(whole) - start * accumulation
        batches.start = 0
        assert list(batches) == whole


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 7))
@settings(deadline=None)
def test_reading_stays_among_a_few_blocks(blocks, window, size):
    order = BlockShuffled(range(0, (blocks + 1) * size, size), 0, window)
    rows = order(0)
    for first in range(0, len(rows), window * size):
        near = rows[first : first + window * size] // size
        assert len(near.unique()) <= window


def test_blocks_are_mixed_with_others_in_each_epoch():
    order = BlockShuffled(range(0, 101, 10), 0, window=2)
    pairs = [
        {frozenset((order(e)[k : k + 20] // 10).tolist()) for k in range(0, 100, 20)}
        for e in range(2)
    ]
    assert pairs[0] != pairs[1]
    inside = order(0)[:20]
    assert not torch.equal(inside, inside.sort().values)
    with pytest.raises(ValueError, match="window must be at least 1 block, found 0"):
        BlockShuffled([0, 4], 0, 0)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_lengths_of_a_batch_are_alike(seed):
    """Padding, the share of what a batch holds up to its longest row, falls to a third and less."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randn(4000, generator=generator).div(2).exp()

    def padding(order):
        batches = [lengths[b] for b in order(0).split(16)]
        return 1 - lengths.sum() / sum(len(b) * b.max() for b in batches)

    assert padding(LengthGrouped(lengths, 16, seed)) < padding(Shuffled(4000, seed)) / 3


def test_batches_of_all_lengths_are_mixed():
    """In the mean over epochs, when a batch comes says nothing about its lengths."""
    order, place = LengthGrouped(torch.arange(800.0), 8, 0), torch.arange(100.0)
    means = torch.stack([order(e).view(100, 8).float().mean(1) for e in range(20)])
    correlations = [torch.corrcoef(torch.stack([m, place]))[0, 1] for m in means]
    assert torch.stack(correlations).mean().abs() < 0.1


@pytest.mark.parametrize("rows", [64, 800])
def test_batches_hold_other_rows_in_other_epochs(rows):
    order = LengthGrouped(torch.arange(float(rows)), 8, 0)
    first, second = ({frozenset(b.tolist()) for b in order(e).split(8)} for e in (0, 1))
    assert len(first & second) < len(first) / 2


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
@settings(deadline=None, max_examples=20)
def test_classes_are_drawn_as_often_as_the_power_says(seed, power):
    counts = torch.tensor([1600, 400, 100])
    unlabelled = 900
    labels = torch.cat([torch.arange(3).repeat_interleave(counts), torch.full((unlabelled,), -1)])
    labels = labels[torch.randperm(3000, generator=torch.Generator().manual_seed(seed))]
    drawn = labels[Balanced(labels, seed, power)(0)]
    assert len(drawn) == 3000
    assert abs((drawn < 0).sum() - unlabelled) < 5 * 630**0.5  # five deviations of a binomial
    weights = counts.double() ** (1 - power)
    expected = 2100 * weights / weights.sum()
    found = torch.bincount(drawn[drawn >= 0], minlength=3)
    assert ((found - expected).abs() < 5 * expected.sqrt() + 5).all()


def test_balance_needs_no_labels():
    assert len(Balanced(torch.full((10,), -1), 0)(0).unique()) > 3


@given(st.lists(st.integers(0, 9), max_size=60))
@settings(deadline=None)
def test_repeats_are_counted_in_the_order_in_which_they_come(rows):
    naive = [rows[:i].count(row) for i, row in enumerate(rows)]
    assert times_before(torch.tensor(rows, dtype=torch.int64)).tolist() == naive


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("start", [0, 2])
def test_every_draw_of_an_epoch_is_another_whatever_the_processes(shape, start):
    """A row that is drawn again is told from its first draw, in the middle of an epoch as well."""
    labels = torch.tensor([0] * 30 + [1, 1, 2])
    accumulation, processes = shape

    def keys(accumulation, processes, start):
        found = []
        for rank in range(processes):
            order = Balanced(labels, seed=3)
            sampler = TrainBatches(33, 8, 0, accumulation, rank, processes, order)
            sampler.start = start
            found += [draw_key(i) for part in sampler for i in part if i >= 0]
        return sorted(found)

    alone = keys(1, 1, 0)
    assert len(set(alone)) == len(alone) == 33
    assert max(map(len, alone)) == 2  # else nothing was drawn twice
    assert keys(accumulation, processes, start) == keys(1, 1, start)
    assert set(keys(1, 1, start)) <= set(alone)
