"""The store gives back what went in, or says that it is no store."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtransfer.data.store import FeatureStore, finish_store, write_shard


def build(root, shards, width, name="store", precision="fp32"):
    part = root / f"{name}.part"
    written = [write_shard(part, k, [r[:2], r[2:]], precision) for k, r in enumerate(shards)]
    finish_store(part, root / name, description(width, written, precision))
    return FeatureStore(root / name)


def description(width, shards, precision="fp32"):
    entries = {"width": width, "depth": 0, "precision": precision, "unreadable": []}
    return entries | {"shards": shards}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=3))
def test_rows_come_back_bit_equal(tmp_path_factory, lengths):
    rng = np.random.default_rng(0)
    shards = [
        [rng.normal(size=(n, 3)).astype(np.float32) if n else None for n in shard]
        for shard in lengths
    ]
    store = build(tmp_path_factory.mktemp("store"), shards, 3)
    rows = [row for shard in shards for row in shard]
    assert len(store) == len(rows)
    for i, row in enumerate(rows):
        found = store[i]
        assert (found is None) == (row is None)
        assert row is None or np.array_equal(found, row)


def test_rows_are_memory_mapped(tmp_path):
    store = build(tmp_path, [[np.ones((2, 3), np.float32)]], 3)
    assert isinstance(store.tokens[0], np.memmap)
    assert not store.tokens[0].flags.writeable


def test_statistics_are_those_of_the_pooled_rows_that_are_there(tmp_path):
    rng = np.random.default_rng(1)
    rows = [rng.normal(5, 2, (n, 4)).astype(np.float32) if n else None for n in (1, 3, 0, 2)]
    mean, deviation = build(tmp_path, [rows], 4).statistics()
    pooled = np.stack([r.mean(0) for r in rows if r is not None])
    np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, pooled.std(0), rtol=1e-4)


def test_an_unfinished_store_is_none(tmp_path):
    write_shard(tmp_path / "half", 0, [[np.ones((1, 3), np.float32)]], "fp32")
    with pytest.raises(FileNotFoundError, match="no complete feature store"):
        FeatureStore(tmp_path / "half")


def test_two_builders_of_one_store_end_with_one(tmp_path):
    first = build(tmp_path, [[np.ones((1, 2), np.float32)]], 2)
    late = write_shard(tmp_path / "late.part", 0, [[np.zeros((1, 2), np.float32)]], "fp32")
    finish_store(tmp_path / "late.part", first.directory, description(2, [late]))
    assert np.array_equal(FeatureStore(first.directory)[0], np.ones((1, 2)))
    assert not (tmp_path / "late.part").exists()


def test_a_row_beyond_the_end_is_an_index_error(tmp_path):
    store = build(tmp_path, [[np.ones((1, 2), np.float32)]], 2)
    with pytest.raises(IndexError, match="row 1 of a feature store of 1 rows"):
        store[1]
