"""The data and the measurements of benchmarks/memory.py; the benchmark itself is run by hand."""

from __future__ import annotations

import importlib.util
import mmap
import sys
import time
from pathlib import Path

import pytest

from mmtransfer.data.rows import read_parquet
from mmtransfer.encoders.decoding import decode_image

FILE = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("benchmark_memory", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_many_different_readable_photos(memory, tmp_path):
    size = memory.write_rows(tmp_path / "train.parquet", 150)
    rows = read_parquet([tmp_path / "train.parquet"])
    assert len(rows.blocks) - 1 == 3
    assert len({row["image"] for row in rows}) == 150
    assert size > sum(len(row["image"]) for row in rows)  # nothing found the repeated photos
    assert decode_image(rows[149]["image"]).size == (memory.PIXELS, memory.PIXELS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_seen(memory):
    sampler = memory.Sampler()
    sampler.start()
    before = memory.status("RssAnon")
    # Not memory that an allocator had before.
    held = mmap.mmap(-1, 2**25, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"1" * len(held))
    time.sleep(0.5)
    sampler.done.set()
    sampler.join(5)
    assert memory.status("VmHWM") >= sampler.peak >= before + len(held) * 0.9
