"""Both sides of the benchmark do the same work, one of them once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmtransfer.data.products import product_rows
from mmtransfer.training.run import build_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import frozen_epochs as benchmark


@pytest.fixture(scope="module")
def rows():
    return product_rows("target/train", rows=32)


@pytest.fixture(scope="module")
def model(rows):
    return build_model(benchmark.TINY, benchmark.TASKS, rows, "gated", 16)


def test_the_probe_encodes_once_and_learns_the_same(model, rows):
    found = benchmark.probe(model, rows, 2)
    assert found["first"]["encoded_rows"] == 3 * 32
    assert found["second"]["encoded_rows"] == found["anew"]["encoded_rows"] == 0
    assert found["second"]["losses"] == found["first"]["losses"]
    assert len(found["anew"]["epochs"]) == len(found["first"]["epochs"]) == 2


def test_partial_tuning_has_the_same_losses(model, rows):
    found = benchmark.prefix(model, rows, 2)
    assert found["stored"]["encoded_rows"] == 3 * 32
    assert found["loss_gap"] < benchmark.SAME_LOSS
    assert found["megabytes"] > 0
