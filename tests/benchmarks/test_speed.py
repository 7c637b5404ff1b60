"""The benchmarks of speed run, at sizes at which their figures mean nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import MobileNetV2Config, MobileNetV2ImageProcessor, MobileNetV2Model

from mmtransfer import build_encoder
from mmtransfer.data.products import product_rows

FOLDER = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def results_of(done: subprocess.CompletedProcess[str], output: Path) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(output.read_text())
    assert results["versions"]["torch"]
    assert results["hardware"]["cpu"]
    return results


@pytest.mark.slow
def test_starting_takes_as_little_as_it_should(tmp_path):
    output = tmp_path / "startup.json"
    # CPU seconds hardly depend on what else runs, so the limits themselves can be tested.
    cases = results_of(benchmark("startup", "--turns", "3", "--output", str(output)), output)
    assert cases["cases"]["import mmtransfer"]["cpu"] <= 0.2
    assert cases["cases"]["mmtransfer --help"]["cpu"] <= 0.5


@pytest.mark.slow
def test_absent_recordings_on_the_embedded_data(tmp_path):
    output = tmp_path / "absent.json"
    sizes = ("--rows", "32", "--batch_size", "16", "--turns", "1", "--shared", str(tmp_path))
    results = results_of(
        benchmark("absent", *sizes, "--limit", "-9", "--output", str(output)), output
    )
    assert "tiny-wav2vec2" in results["settings"]["what"]
    assert results["settings"]["input_missing"] == pytest.approx(0.5, abs=0.02)
    assert set(results["cases"]) == {"frozen", "trained"}
    done = benchmark("absent", *sizes, "--limit", "1.1", "--output", str(output))
    assert done.returncode == 1
    assert "below the limit 1.1" in done.stderr


@pytest.mark.slow
def test_batches_by_length_have_less_padding(tmp_path):
    output = tmp_path / "lengths.json"
    sizes = ("--rows", "48", "--batch_size", "4", "--turns", "1", "--limit", "0")
    cases = results_of(benchmark("lengths", *sizes, "--output", str(output)), output)["cases"]
    for case in ("text", "sound", "both"):
        assert cases[case]["padding"]["length"] < 0.8 * cases[case]["padding"]["shuffled"]
        assert cases[case]["speedup"]["cpu"] > 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small convolutional network for images and a small BERT, saved as transformers does."""
    folder = tmp_path_factory.mktemp("models")
    image = MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, image_size=32))
    image.save_pretrained(folder / "image")
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    MobileNetV2ImageProcessor(size=size, crop_size=crop).save_pretrained(folder / "image")
    text = build_encoder("tiny-bert?width=16&layers=1")
    text.model.save_pretrained(folder / "text")
    text.processor.save_pretrained(folder / "text")
    return {name: folder / name for name in ("image", "text")}


@pytest.mark.slow
def test_both_sides_of_the_comparison_do_the_task(models, tmp_path):
    for file, split in (("train", "train"), ("test", "test")):
        rows = [
            {**row, "image": {"bytes": row["image"], "path": None}}
            for row in product_rows(f"target/{split}", rows=48)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{file}.parquet")
    output = tmp_path / "peers.json"
    names = [f"--{name}={path}" for name, path in models.items()]
    sizes = ("--rows=32", "--test_rows=32", "--epochs=2", "--batch_size=16", "--parts=2")
    done = benchmark(
        "peers", *names, *sizes, "--check=false", f"--data={tmp_path}", f"--output={output}"
    )
    results = results_of(done, output)
    for case in ("full", "frozen"):
        for side in ("transformers", "mmtransfer"):
            found = results["cases"][case][side]
            assert found["epoch"][1] > 0
            assert found["peak_memory"] > 1e8
            assert all(0 <= accuracy <= 1 for accuracy in found["accuracy"])
    assert results["lines"]["mmtransfer"] < results["lines"]["transformers"] / 3
    shares = {name: entry["share"] for name, entry in results["autogluon"]["published"].items()}
    assert all(np.isfinite(share) and share > 0 for share in shares.values())
    assert re.search(r"AutoGluon MultiModal 1\.6\.3, published", done.stdout)


def test_wrong_arguments_are_refused(tmp_path):
    done = benchmark("peers", f"--data={tmp_path}")
    assert done.returncode == 2
    assert f"no retail set in {tmp_path}" in done.stderr
    done = benchmark("peers", "--epochs=1", MMTRANSFER_SHARED=str(tmp_path))
    assert done.returncode == 2
    assert "epochs must be at least 2, found 1" in done.stderr
