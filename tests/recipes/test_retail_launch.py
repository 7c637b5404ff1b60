"""The retail recipe on two processes, with all parameters on each and with shared ones."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtransfer.data.products import product_rows
from mmtransfer.model import TransferModel

RECIPE = Path(__file__).parents[2] / "recipes" / "retail_product.py"
ARGUMENTS = [
    *("--image", "tiny-vit?width=16&layers=2", "--text", "tiny-bert?width=16&layers=2"),
    *("--strategy", "lp_ft", "--strategy_options", '{"probe_epochs": 1, "epochs": 1}'),
    *("--width", "16", "--dropout", "0", "--training.batch_size", "16"),
    *("--training.progress", "false", "--training.track", "[]"),
]
LAUNCHERS = {
    "one": [],
    "ddp": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    "fsdp2": [
        *("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"),
        *("--fsdp_auto_wrap_policy", "NO_WRAP", "--fsdp_cpu_ram_efficient_loading", "false"),
        *("--num_processes", "2"),
    ],
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind."""
    root = tmp_path_factory.mktemp("launched")
    for file, split, rows in (("train", "train", 40), ("test", "test", 21)):
        table = pa.Table.from_pylist(product_rows(f"target/{split}", rows=rows))
        pq.write_table(table, root / f"{file}.parquet")
    for name, launcher in LAUNCHERS.items():
        command = [sys.executable, *launcher, str(RECIPE), "--data", str(root), *ARGUMENTS]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--output", str(root / name)],
            env=os.environ | variables | {"MMTRANSFER_CACHE": str(root / f"cache-{name}")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: root / name for name in LAUNCHERS}


def losses(output: Path) -> list[float]:
    with (output / "training.csv").open(newline="") as file:
        return [float(line["loss"]) for line in csv.DictReader(file) if line["loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_does(outputs, name):
    found, alone = (json.loads((outputs[n] / "metrics.json").read_text()) for n in (name, "one"))
    assert (found["processes"], alone["processes"]) == (2, 1)
    assert found["test"]["product"]["rows"] == alone["test"]["product"]["rows"] == 21
    assert len(losses(outputs[name])) == 6
    assert losses(outputs[name]) == pytest.approx(losses(outputs["one"]), abs=1e-4)
    assert found["test"]["product"]["loss"] == pytest.approx(
        alone["test"]["product"]["loss"], abs=1e-3
    )
    answers = TransferModel.from_pretrained(outputs[name] / "model").predict([{"text": "milk"}])
    assert answers[0]["product"]["label"]
