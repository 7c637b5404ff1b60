"""Killed anywhere and resumed, a run ends with the same bits; other faults cost nothing either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "faults.py"
FAMILIES = [
    "kill-1",
    "kill-2",
    "kill-fsdp",
    "sigterm",
    "disk-full",
    "nan",
    "corrupt",
    "worker",
    "memory",
    "read-only",
    "processes",
    "store",
    "refused",
    "finished",
]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_faults_are_survived(family, tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--only", family, "--output", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    results = json.loads((tmp_path / "faults.json").read_text())["faults"]
    lost = {name: found["outcome"] for name, found in results.items() if not found["survived"]}
    assert not lost
    assert done.returncode == 0
    assert f"{len(results)} faults, {len(results)} survived" in done.stdout
    if family in ("kill-1", "kill-2"):
        assert len(results) >= 20
        assert sum("checkpoint file" in name for name in results) >= 5


def test_every_family_is_tested():
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--list"], capture_output=True, text=True, check=True
    )
    names = done.stdout.splitlines()
    assert len(names) > 60
    assert all(any(name.startswith(family) for family in FAMILIES) for name in names)
