"""Micro-batches of a stream: every row once over ranks and workers, and exact starts."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from mmtransfer.data.rows import load_rows
from mmtransfer.data.stream import Stream
from mmtransfer.data.stream_batches import EvaluationStream, TrainStream, steps_of


def make(rows: int, shards: int = 4) -> datasets.IterableDataset:
    columns = {"n": list(range(rows))}
    return datasets.Dataset.from_dict(columns).to_iterable_dataset(shards)


def read(batches, workers: int = 0):
    """What a loader gives in the main process, batch by batch."""
    return list(DataLoader(batches, batch_size=None, num_workers=workers))


def values(batches) -> list[int]:
    return [row["n"] for _, row in chain(*batches)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rows", "shards", "processes"), [(48, 4, 1), (48, 4, 2), (48, 1, 2)])
def test_ranks_and_workers_cover_every_row_once(rows, shards, processes, workers):
    """Whether there are shards enough for all of them or not."""
    ranks = []
    for rank in range(processes):
        stream = Stream(make(rows, shards))
        batches = TrainStream(stream, 12, 0, 4, 1, rank, processes, buffer=8)
        ranks.append(read(batches, workers))
        assert {len(batch) for batch in ranks[-1]} == {12 // processes}
        assert len(ranks[-1]) == batches.steps == 4
    together = list(chain(*ranks))
    assert sorted(values(together)) == list(range(rows))
    assert values(together) != list(range(rows))
    numbers = [number for number, _ in chain(*together)]
    assert len(set(numbers)) == rows
    assert min(numbers) >= 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_a_start_leaves_out_whole_steps(workers, start):
    batches = TrainStream(Stream(make(60)), 6, 0, 6, 2, buffer=10)
    batches.epoch = 3
    whole = read(batches, workers)
    assert len(whole) == 12
    batches.start = start
    assert read(batches, workers) == whole[2 * start :]


def test_epochs_differ_and_repeat_also_in_workers_that_live_on():
    batches = TrainStream(Stream(make(48)), 8, 0, 6, buffer=10)
    loader = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)
    found = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        found.append(list(loader))
    assert found[0] == found[2] != found[1]
    assert sorted(values(found[1])) == list(range(48))
    other = TrainStream(Stream(make(48)), 8, 1, 6, buffer=10)
    assert values(read(other, 2)) != values(found[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_runs_out_starts_over(workers):
    found = read(TrainStream(Stream(make(10)), 4, 0, 10, buffer=4), workers)
    counts = Counter(values(found))
    assert len(found) == 10
    assert set(counts) == set(range(10))
    if not workers:
        assert set(counts.values()) == {4}
    numbers = [number for number, _ in chain(*found)]
    assert len(set(numbers)) == 40  # a row that comes again is changed in another way
    first, second = values(found)[:10], values(found)[10:20]
    if not workers:
        assert sorted(first) == sorted(second) == list(range(10))
        assert first != second


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 7, 12, 19])
def test_evaluation_deals_every_row_once(rows, processes, workers):
    stream = Stream(make(rows, 1))
    ranks = [read(EvaluationStream(stream, 3, r, processes), workers) for r in range(processes)]
    assert len({len(batches) for batches in ranks}) == 1
    real = [(i, row["n"]) for batches in ranks for i, row in chain(*batches) if i >= 0]
    assert sorted(real) == [(i, i) for i in range(rows)]
    for batches in ranks:
        assert all(len({i >= 0 for i, _ in batch}) == 1 for batch in batches)  # whole fillers
        assert all(row["n"] == max(i, ~i) for i, row in chain(*batches))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("start", [1, 2, 4])
def test_a_start_leaves_out_batches_of_an_evaluation(start, processes, workers):
    for rank in range(processes):
        batches = EvaluationStream(Stream(make(27, 1)), 3, rank, processes)
        whole = read(batches)
        batches.start = start
        assert read(batches, workers) == whole[start:]


def test_a_start_reaches_workers_that_live_on():
    batches = EvaluationStream(Stream(make(27, 1)), 3)
    loader = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)
    whole = list(loader)
    for start in (5, 0):
        batches.start = start
        assert list(loader) == whole[start:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[36], [30, 6], [20, 1, 0, 3, 12]])
def test_shards_of_any_number_and_size_give_each_row_once(tmp_path, sizes, processes, workers):
    """In a pass over the ranks and workers, fewer shards than these included."""
    start = 0
    for number, size in enumerate(sizes):
        table = pa.table({"n": list(range(start, start + size))})
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
        start += size
    stream = load_rows(tmp_path, streaming=True)["train"]
    dealt = [
        read(TrainStream(stream, 6, 0, 6, 1, rank, processes), workers) for rank in range(processes)
    ]
    assert sorted(values(chain(*dealt))) == list(range(36))


def test_a_stream_without_a_length_needs_steps():
    with pytest.raises(ValueError, match="does not say how many rows it has: set steps_per_epoch"):
        steps_of(Stream(make(10)), 4, None)


def test_parts_of_a_step_must_be_equal_and_have_rows():
    with pytest.raises(ValueError, match=r"batch_size 10 .* multiple of .* = 2 x 3"):
        TrainStream(Stream(make(10)), 10, 0, 1, 2, 0, 3)
    with pytest.raises(ValueError, match="part 3 of the 3 .* has no rows"):
        read(TrainStream(Stream(make(2, 1)), 3, 0, 2, 1, 2, 3))


@pytest.mark.parametrize("length", [None, 200])
def test_shards_are_mixed_whether_read_side_by_side_or_not(length):
    """A buffer of a quarter of the rows: each batch has rows of most of eight shards."""
    stream = Stream(make(200, 8), length)
    found = read(TrainStream(stream, 40, 0, 5, buffer=100))
    assert sorted(values(found)) == list(range(200))
    assert all(len({n // 25 for n in values([batch])}) >= 4 for batch in found)
