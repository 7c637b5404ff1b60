"""The cache: damage is found wherever it is, and nothing is removed that somebody may need."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmtransfer.data.cache import ABANDONED, damage, entries, prune
from mmtransfer.data.store import FeatureStore, finish_store, store_key, write_shard

DAY = 86400.0


def build(cache: Path, number: int, age: float = 0.0, rows: int = 3) -> Path:
    """A store of two shards that was used `age` seconds ago."""
    key = store_key(number)
    part, final = cache / "features" / f"{key}.0123abcd.part", cache / "features" / key
    tokens = [np.full((1 + k % 2, 4), number, np.float32) if k % 3 else None for k in range(rows)]
    shards = [write_shard(part, k, [tokens], "fp32") for k in range(2)]
    about = {"column": f"c{number}", "depth": 0, "augmentation": None, "precision": "fp32"}
    about |= {"width": 4, "unreadable": [], "encoder class": "E", "shards": shards}
    finish_store(part, final, about)
    used_before(final / "store.json", age)
    return final


def half_written(cache: Path, number: int, age: float) -> Path:
    part = cache / "features" / f"{store_key(number)}.89abcdef.part"
    write_shard(part, 0, [[np.ones((1, 4), np.float32)]], "fp32")
    for path in (*part.iterdir(), part):
        used_before(path, age)
    return part


def used_before(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age,) * 2)


def bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def tree(directory: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    build(cache, 0)
    return cache


FILES = ["tokens-0.bin", "tokens-1.bin", "ends-0.npy", "ends-1.npy", "store.json"]


@given(st.sampled_from(FILES), st.integers(0), st.integers(1, 255))
@settings(deadline=None)
def test_a_changed_byte_is_found_wherever_it_is(sound, file, position, change):
    (entry,) = entries(sound)
    assert damage(entry) is None
    path = entry.directory / file
    written = path.read_bytes()
    changed = bytearray(written)
    changed[position % len(changed)] ^= change
    # Another white space between the entries of the description is no damage.
    assume(file != "store.json" or bytes(changed).split() != written.split())
    path.write_bytes(changed)
    try:
        (found,) = entries(sound)
        assert damage(found) is not None
        assert prune(sound) == []
        assert prune(sound, damaged=True, dry_run=True) == [found]
        found.summary()
    finally:
        path.write_bytes(written)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("size", [None, 0, 10])
def test_a_missing_or_short_file_is_found_and_named(tmp_path, file, size):
    path = build(tmp_path, 0) / file
    kept = build(tmp_path, 1)
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    found = {entry.directory: damage(entry) for entry in entries(tmp_path)}
    assert found[kept] is None
    assert file in found[path.parent]
    assert [entry.directory for entry in prune(tmp_path, damaged=True)] == [path.parent]
    assert list((tmp_path / "features").iterdir()) == [kept]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30)), max_size=5, unique_by=lambda x: x),
    st.none() | st.integers(0, 100),
    st.none() | st.integers(0, 6000),
)
@settings(deadline=None, max_examples=30)
def test_what_was_used_last_stays(tmp_path_factory, stores, days, size):
    cache = tmp_path_factory.mktemp("cache")
    (cache / "features").mkdir()
    ages = {}
    for number, (age, rows) in enumerate(stores):
        ages[build(cache, number, (age + number / 10 + 0.5) * DAY, rows)] = age + number / 10 + 0.5
    sizes = {path: bytes_of(path) for path in ages}
    limit = None if size is None else size / 1e9
    planned = prune(cache, days, limit, dry_run=True)
    assert {entry.directory for entry in entries(cache)} == set(ages)  # a plan removes nothing
    gone = prune(cache, days, limit)
    assert [entry.directory for entry in gone] == [entry.directory for entry in planned]
    kept = set((cache / "features").iterdir())
    removed = {entry.directory for entry in gone}
    assert (kept | removed, kept & removed) == (set(ages), set())
    for path in kept:
        FeatureStore(path)
        assert days is None or ages[path] < days
        assert all(ages[other] > ages[path] for other in removed)
    if size is not None:
        assert sum(sizes[path] for path in kept) <= size
    for path in removed:  # not without need: too old, or too large together with what stays
        too_old = days is not None and ages[path] > days
        next_one = min(removed, key=ages.__getitem__)
        too_much = size is not None and sum(sizes[p] for p in kept | {next_one}) > size
        assert too_old or too_much
    assert prune(cache, days, limit) == []


def test_what_is_being_written_stays_and_what_was_abandoned_goes(tmp_path):
    writing = half_written(tmp_path, 0, ABANDONED / 2)
    old = half_written(tmp_path, 1, 2 * ABANDONED)
    started = half_written(tmp_path, 2, 2 * ABANDONED)
    (started / "tokens-1.bin").write_bytes(b"")  # another process is at work now
    states = {entry.directory: entry.summary()["what"] for entry in entries(tmp_path)}
    assert states == {
        writing: "being written",
        old: "abandoned half-way",
        started: "being written",
    }
    assert all(damage(entry) is None for entry in entries(tmp_path))
    gone = prune(tmp_path, days=0, gigabytes=0, damaged=True)
    assert [entry.directory for entry in gone] == [old]
    assert set((tmp_path / "features").iterdir()) == {writing, started}


def test_nothing_else_is_touched(tmp_path):
    """Neither other files, nor names that are no key, nor what a link leads to."""
    cache, elsewhere = tmp_path / "cache", build(tmp_path / "elsewhere", 7, 99 * DAY)
    features = cache / "features"
    key = store_key(1)
    for name in (key.upper(), key + "0", key[:-1], f"{key}.part", f"{key}.0123abcd", "mine"):
        shutil.copytree(elsewhere, features / name)
    (features / store_key(2)).symlink_to(elsewhere)
    (features / store_key(3)).write_text("a file")
    (cache / store_key(4)).mkdir()
    before = tree(tmp_path)
    old = build(cache, 5, 99 * DAY)
    assert [entry.directory for entry in entries(cache)] == [old]
    assert [entry.directory for entry in prune(cache, 0, 0, damaged=True)] == [old]
    assert tree(tmp_path) == before


def test_a_store_goes_at_once_or_not_at_all(tmp_path, monkeypatch):
    """Interrupted, it leaves something that no run takes for a store, and that goes next time."""
    path = build(tmp_path, 0, 9 * DAY)
    for file in path.iterdir():
        used_before(file, 9 * DAY)
    used_before(path, 9 * DAY)
    plain = shutil.rmtree

    def interrupted(directory):
        (directory / "tokens-0.bin").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, days=1)
    monkeypatch.setattr(shutil, "rmtree", plain)
    (left,) = entries(tmp_path)
    assert left.half_written
    assert not path.exists()
    used_before(left.directory, 9 * DAY)
    assert len(prune(tmp_path)) == 1
    assert list((tmp_path / "features").iterdir()) == []


def test_use_is_noted(tmp_path):
    first, second = build(tmp_path, 0, 5 * DAY), build(tmp_path, 1, 3 * DAY)
    assert [entry.directory for entry in entries(tmp_path)] == [second, first]
    FeatureStore(first).mark_used()
    assert [entry.directory for entry in entries(tmp_path)] == [first, second]
    assert [entry.directory for entry in prune(tmp_path, days=2)] == [second]


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_limits_are_checked_before_anything_goes(tmp_path, value):
    build(tmp_path, 0)
    for name in ("days", "gigabytes"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, found {value}"):
            prune(tmp_path, **{name: value})
    with pytest.raises(FileNotFoundError, match="no such cache directory"):
        entries(tmp_path / "nowhere")
    assert len(entries(tmp_path)) == 1


def test_an_empty_cache_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MMTRANSFER_CACHE", str(tmp_path / "not yet"))
    assert entries() == prune(days=0) == []
