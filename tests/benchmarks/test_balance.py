"""Members and sums of benchmarks/balance.py on few rows; the benchmark itself is run by hand."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtransfer.encoders.decoding import Waveform
from mmtransfer.methods.base import build_method

FILE = Path(__file__).parents[2] / "benchmarks" / "balance.py"


@pytest.fixture(scope="module")
def balance():
    sys.path.insert(0, str(FILE.parent))
    spec = importlib.util.spec_from_file_location("benchmark_balance", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FILE.parent))
    return module


def made_up(count):
    """Pictures and tones of which each tells the digit, 0 or 1."""
    rng = np.random.default_rng(count)
    rows = []
    for i in range(count):
        picture = np.full((28, 28), 60 + 130 * (i % 2), np.uint8) + rng.integers(0, 40, (28, 28))
        tone = np.sin(np.arange(2000) * (0.2 + 0.5 * (i % 2))).astype(np.float32)
        rows.append(
            {"image": picture.astype(np.uint8), "audio": Waveform(tone, 8000), "digit": i % 2}
        )
    return rows


@pytest.fixture(scope="module")
def results(balance):
    data = {"train": made_up(32), "test": made_up(30)}
    balance.begin(balance.Plan(data, 2, "test"))
    names = ["plain", "mmpareto"]
    members = [balance.Member(n, balance.METHODS[n], s) for n in names for s in (0, 1)]
    members.append(balance.Member("audio alone", None, 0, ("audio",)))
    return [{"name": m.name, "seed": m.seed, **balance.train(m)} for m in members]


def test_every_member_is_judged_by_probes_of_its_encoders(results):
    for found in results:
        alone = found["name"] == "audio alone"
        assert {"joint", "image", "audio"} & found.keys() == (
            {"audio"} if alone else {"joint", "image", "audio"}
        )
        assert found["audio"] == 1.0  # whatever the encoder is like, tones differ in it


def test_gains_are_between_members_of_one_seed(balance):
    accuracies = {"plain": (0.5, 0.7, 0.6), "better": (0.6, 0.8, 0.71)}
    found = [
        {"name": name, "seed": seed, "joint": value, "seconds": 1.0}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    summary = balance.summarise(found)
    assert summary["plain"]["joint"]["gain_interval"] == 0
    better = summary["better"]["joint"]
    assert better["gain"] == pytest.approx(0.31 / 3)
    deviation = np.std([0.1, 0.1, 0.11], ddof=1)
    assert better["gain_interval"] == pytest.approx(4.3027 * deviation / math.sqrt(3), rel=1e-4)


def test_every_method_that_is_compared_or_tuned_can_be_built(balance):
    for spec in balance.METHODS.values():
        if spec is not None:
            build_method(spec)
    for name, grid in balance.GRID.items():
        build_method({"name": name, **{option: values[0] for option, values in grid.items()}})
    assert balance.GRID.keys() == balance.METHODS.keys() - {"plain"}


def test_the_figures_of_the_page_are_those_of_the_results():
    root = FILE.parents[1]
    file = root / "benchmarks" / "results" / "balance.json"
    if not file.is_file():
        pytest.skip("the benchmark of balance has not been run in full yet")
    results = json.loads(file.read_text())
    page = (root / "docs" / "balance.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if "±" in line}
    for name, kinds in results["summary"].items():
        for kind in kinds.values():
            assert f"{100 * kind['mean']:.1f}" in rows[name]
            if name != "plain" and "alone" not in name:
                shown = f"{100 * kind['gain']:+.1f} ± {100 * kind['gain_interval']:.1f}"
                assert shown in rows[name]
