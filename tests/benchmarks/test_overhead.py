"""The overhead benchmark runs, at sizes at which its figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
SMALL = ("--rows", "32", "--batch_size", "16", "--epochs", "1", "--repetitions", "1")


def overhead(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *SMALL, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_it_measures_both_cases_and_says_on_what(processes, tmp_path):
    output = tmp_path / "overhead.json"
    done = overhead("--processes", str(processes), "--limit", "0", "--output", str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(output.read_text())
    assert results["settings"]["processes"] == processes
    assert results["versions"]["torch"]
    assert results["hardware"]["cpu"]
    for name in ("full", "frozen"):
        case = results["cases"][name]
        assert case["ratio"] > 0
        assert case["trainer"]["rows_per_second"] > 0
        assert name in done.stdout


@pytest.mark.slow
def test_a_ratio_below_the_limit_fails(tmp_path):
    done = overhead("--limit", "1000", "--output", str(tmp_path / "overhead.json"))
    assert done.returncode == 1, done.stderr[-3000:]
    assert "is below the limit 1000" in done.stderr


def test_rows_that_do_not_divide_are_refused():
    done = overhead("--rows", "33")
    assert done.returncode == 2
    assert "rows must be a multiple of batch_size" in done.stderr
