"""The store gives back what went in, or says that it is no store."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtransfer.data.store import FeatureStore, StoredViews, finish_store, is_sound, write_shard


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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_what_torch_makes_of_it(tmp_path, precision):
    rows = [np.random.default_rng(k).normal(size=(k, 3)).astype(np.float32) for k in (1, 4, 2)]
    store = build(tmp_path, [rows], 3, precision=precision)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    for i, row in enumerate(rows):
        rounded = torch.from_numpy(row).to(dtype).float().numpy()
        assert store[i].dtype == np.float32
        assert np.array_equal(store[i], rounded)
    assert (store.directory / "tokens-0.bin").stat().st_size == 2 * 3 * 7


def test_what_is_too_large_for_fp16_is_an_error_and_not_infinite(tmp_path):
    with pytest.raises(OverflowError, match="7e.04, too large for fp16: store fp32 or bf16"):
        write_shard(tmp_path, 0, [[np.full((1, 2), 7e4, np.float32)]], "fp16")


@pytest.mark.parametrize("file", ["tokens-0.bin", "ends-0.npy", "store.json"])
@pytest.mark.parametrize("size", [0, 20])
def test_a_damaged_store_is_no_sound_one_and_gives_way_to_a_new_one(tmp_path, file, size):
    rows = [np.ones((2, 3), np.float32), None, np.full((1, 3), 2, np.float32)]
    store = build(tmp_path, [rows], 3)
    assert is_sound(store.directory)
    path = store.directory / file
    path.write_bytes(path.read_bytes()[:size])
    assert not is_sound(store.directory)
    again = build(tmp_path, [rows], 3)
    assert np.array_equal(again[0], rows[0])
    assert again[1] is None


@pytest.mark.parametrize("meanwhile", ["removed", "replaced"])
def test_a_damaged_store_that_another_builder_is_quicker_with(tmp_path, monkeypatch, meanwhile):
    rows = [np.ones((2, 3), np.float32)]
    final = build(tmp_path, [rows], 3).directory
    (final / "tokens-0.bin").write_bytes(b"")
    shards = [write_shard(tmp_path / "late.part", 0, [rows], "fp32")]
    look, delete, deleted = is_sound, shutil.rmtree, []

    def look_too_early(directory):
        found = look(directory)
        monkeypatch.setattr("mmtransfer.data.store.is_sound", look)
        delete(final)
        if meanwhile == "replaced":
            build(tmp_path, [rows], 3)
        monkeypatch.setattr(shutil, "rmtree", lambda path: (deleted.append(path), delete(path)))
        return found

    monkeypatch.setattr("mmtransfer.data.store.is_sound", look_too_early)
    finish_store(tmp_path / "late.part", final, description(3, shards))
    assert np.array_equal(FeatureStore(final)[0], rows[0])
    assert final not in deleted  # file by file, while another run reads it
    assert list(tmp_path.iterdir()) == [final]


def test_views_take_turns_by_epoch(tmp_path):
    views = [
        build(tmp_path, [[np.full((1, 2), k, np.float32)]], 2, name=f"view-{k}") for k in range(3)
    ]
    epoch = torch.zeros((), dtype=torch.int64)
    stored = StoredViews(views, epoch)
    seen = []
    for number in range(5):
        epoch.fill_(number)
        seen.append(float(stored[0][0, 0]))
    assert seen == [0, 1, 2, 0, 1]
