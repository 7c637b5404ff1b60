"""The recipe as users run it: command line, outputs, refusals, repeat from the saved config."""

from __future__ import annotations

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


def recipe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE), *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for file, split, rows in (
        ("train", "train", 48),
        ("val", "validation", 32),
        ("test", "test", 32),
    ):
        table = pa.Table.from_pylist(product_rows(f"target/{split}", rows=rows))
        pq.write_table(table, root / f"{file}.parquet")
    return root


@pytest.mark.slow
def test_a_run_on_own_data(data, tmp_path):
    arguments = [
        *("--data", str(data), "--image", "tiny-vit", "--text", "tiny-bert"),
        *(
            "--audio",
            "tiny-wav2vec2",
            "--strategy",
            "linear_probe",
            "--strategy_options.epochs",
            "2",
        ),
        *("--width", "16"),
    ]
    done = recipe(*arguments, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["test"]["product"]) >= {"accuracy", "f1_macro"}
    assert set(metrics["single"]) == {"image", "text", "audio"}
    assert metrics["seconds"] > 0
    for file in ("config.yaml", "chart.png", "model/model.safetensors", "model/config.json"):
        assert (out / file).is_file(), file
    assert list((out / "logs").rglob("events*"))
    assert "image + text + audio" in done.stdout
    assert len(TransferModel.from_pretrained(out / "model").predict([{"text": "milk"}])) == 1

    again = recipe(*arguments, "--output", "out", cwd=tmp_path)
    assert again.returncode != 0
    assert "already holds a run" in again.stderr
    assert "--overwrite" in again.stderr

    # The saved configuration is the same run.
    repeat = recipe("--config", "out/config.yaml", "--output", "out2", cwd=tmp_path)
    assert repeat.returncode == 0, repeat.stderr[-3000:]
    repeated = json.loads((tmp_path / "out2/metrics.json").read_text())
    assert repeated["test"] == metrics["test"]
    assert repeated["timing"]["encoded_rows"] == 0  # read from the store


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "linear_prob"), "Did you mean 'linear_probe'"),
        (("--fusion", "gatd", "--image", "tiny-vit"), "Did you mean 'gated'"),
        (("--image", "tiny-vti"), "Did you mean 'tiny-vit'"),
        (
            ("--image", "tiny-vit", "--tasks", '{"prodct": "classification"}'),
            "Did you mean 'product'",
        ),
        (("--image", "tiny-vit?widht=3"), "Did you mean 'width'"),
        ((), "no encoder is given"),
        (("--data", "./nowhere", "--image", "tiny-vit"), "no such data directory"),
    ],
)
def test_mistakes_end_with_one_clear_line(data, tmp_path, arguments, message):
    done = recipe("--data", str(data), *arguments, "--output", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "model").exists()


def test_help_lists_the_options(tmp_path):
    done = recipe("--help", cwd=tmp_path)
    assert done.returncode == 0
    for option in ("--data", "--strategy", "--training.precision", "--config"):
        assert option in done.stdout


def test_recipes_are_short():
    for path in RECIPE.parent.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 120, path
