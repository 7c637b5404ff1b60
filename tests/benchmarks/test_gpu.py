"""The GPU benchmark: says so without a GPU, counts FLOPs rightly, and its logic runs on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROOT = FOLDER.parent
#: what GPU machines may lack
HIDE = """
import importlib.machinery
HIDDEN = {"datasets", "soundfile", "jsonargparse", "tensorboard", "torchaudio"}
found = importlib.machinery.PathFinder.find_spec
def find(cls, name, path=None, target=None):
    return None if name.split(".")[0] in HIDDEN else found(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find)
"""


def gpu(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_succeeds(tmp_path):
    output = tmp_path / "gpu.json"
    done = gpu("--output", str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no GPU" in done.stdout
    assert not output.exists()


@pytest.mark.slow
def test_its_logic_runs_where_packages_are_lacking(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    output = tmp_path / "gpu.json"
    sizes = ("--batch-size", "4", "--steps", "2", "--turns", "1", "--workers", "0")
    paths = f"{tmp_path}:{ROOT}"
    done = gpu("--tiny", *sizes, "--output", str(output), PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(output.read_text())
    assert results["versions"]["torch"]
    for case in ("tuned", "frozen", "stored"):
        assert results["cases"][case]["rows_per_second"] > 0
        assert case in done.stdout
    rate, flops, tuned = results["matrix_rate"], results["flops"], results["cases"]["tuned"]
    assert tuned["share"] == pytest.approx(3 * flops["all"] * tuned["rows_per_second"] / rate)


def test_flops_are_those_of_the_closed_form(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    benchmark = importlib.import_module("gpu")
    torch.manual_seed(0)
    flops = benchmark.count_flops(benchmark.build(tiny=True), benchmark.make_rows(2))
    width, hidden = 16, 32
    for name, tokens, patches in (("image", 197, 196 * width * 3 * 16 * 16), ("text", 128, 0)):
        layer = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
        assert flops[name] == 2 * (patches + layer)
    assert flops["all"] > sum(flops[name] for name in ("image", "text", "audio"))
