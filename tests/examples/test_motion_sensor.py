"""The example plug-in: it keeps the contract, and its script learns from the sensor."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtransfer import build_encoder
from mmtransfer.testing import check_encoder

FOLDER = Path(__file__).parents[2] / "examples" / "plugins"


@pytest.fixture
def motion(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("motion_sensor")


@pytest.mark.parametrize("layers", [1, 3])
def test_its_encoder_keeps_the_contract(motion, layers):
    torch.manual_seed(0)
    encoder = build_encoder(f"motion_sensor:MotionEncoder?width=8&layers={layers}")
    rng = np.random.default_rng(0)
    check_encoder(encoder, [rng.normal(size=(n, 6)) for n in (50, 1, 33, 2)])
    assert list(encoder.cuts) == list(range(1, layers))


def test_rows_depend_on_the_seed_only_and_differ_in_length(motion):
    first, again = motion.activity_rows(24, 3), motion.activity_rows(24, 3)
    for row, twin in zip(first, again, strict=True):
        assert row["note"] == twin["note"]
        assert (row["motion"] is None) == (twin["motion"] is None)
        if row["motion"] is not None:
            assert np.array_equal(row["motion"], twin["motion"])
    assert len({len(row["motion"]) for row in first if row["motion"] is not None}) > 5
    assert {row["activity"] for row in first} == set(motion.ACTIVITIES)


def test_readings_of_another_shape_are_refused(motion):
    with pytest.raises(ValueError, match=r"expected readings \(T, 6\), found \(5, 3\)"):
        motion.pad_readings([np.zeros((5, 3))])


@pytest.mark.slow
def test_the_script_learns_more_from_both_than_by_chance(tmp_path):
    command = [sys.executable, str(FOLDER / "motion_sensor.py"), "--rows", "120", "--epochs", "4"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = dict(line.rsplit("  ", 1) for line in done.stdout.splitlines()[1:3])
    assert set(map(str.strip, table)) == {"motion", "note"}
    both = done.stdout.splitlines()[3]
    assert both.startswith("motion + note")
    assert float(both.split()[-2]) > 2 * 100 / 6
