"""The recipe as users run it: command line, outputs, refusals, repeat from the saved config."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtransfer import Phase, Strategy, TrainingOptions, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.products import product_rows
from mmtransfer.model import TransferModel
from mmtransfer.training.run import plain, write_config

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


def load_recipe():
    specification = importlib.util.spec_from_file_location("retail_product", RECIPE)
    story = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(story)
    return story


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


@pytest.mark.slow
def test_a_run_is_repeated_bit_by_bit(data, tmp_path):
    arguments = [
        *("--data", os.path.relpath(data, tmp_path), "--image", "tiny-vit", "--text", "tiny-bert"),
        *("--tasks", '{"product": {"name": "classification", "label_smoothing": 0.1}}'),
        *("--strategy", "lp_ft", "--strategy_options", '{"probe_epochs": 1, "epochs": 1}'),
        *("--training.seed", "3", "--width", "16", "--output", "out"),
    ]
    done = recipe(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    script = "from mmtransfer.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "rerun", str(tmp_path / "out"), "--json"],
        cwd=data,  # anywhere: the record names the directory
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    findings = json.loads(done.stdout)
    assert any("tensors bit-equal" in found["detail"] for found in findings)
    assert all(found["same"] for found in findings)
    again = tmp_path / "out-rerun"
    assert json.loads((again / "run.json").read_text())["seed"] == 3
    weights = [
        (path / "model/model.safetensors").read_bytes() for path in (tmp_path / "out", again)
    ]
    assert weights[0] == weights[1]


def test_every_argument_comes_back_from_the_saved_configuration(tmp_path, monkeypatch):
    story = load_recipe()
    monkeypatch.setitem(sys.modules, "retail_product", story)  # where its type hints are looked up
    received: list[tuple] = []
    monkeypatch.setattr(story, "train_on", lambda *given, **begin: received.append((*given, begin)))
    monkeypatch.setattr(story, "end_processes", lambda: None)
    written_out = {"epochs": 2, "encoder_lr": {"image": 1e-5, "text": 0}, "schedule": "constant"}
    for given in (
        [
            *("--image", "tiny-vit?width=16", "--text", "tiny-bert", "--width", "24"),
            *("--tasks", '{"product": {"name": "classification", "label_smoothing": 0.1}}'),
            *("--fusion", "concat", "--dropout", "1e-3", "--single", "false", "--overwrite"),
            *("--strategy", "full", "--strategy_options.encoder_lr", '{"image": 1e-6}'),
            *("--methods", '[{"name": "modality_dropout", "rate": 0.25}]'),
            *("--training.batch_size", "7", "--training.track", "[]", "--training.seed", "11"),
            *("--training.augment", "true", "--training.cache", "somewhere/else"),
        ],
        [
            *("--image", "tiny-vit", "--methods", "[]", "--single", "true"),
            *("--strategy", json.dumps({"phases": [written_out, {"epochs": 1}]})),
            *("--fusion", '{"name": "gated"}', "--tasks", '{"category": "classification"}'),
        ],
    ):
        received.clear()
        command(story.main, "recipe", ["--data", "DATA", "--output", str(tmp_path / "o"), *given])
        write_config(tmp_path, received[0][8]["arguments"])
        command(story.main, "recipe", ["--config", str(tmp_path / "config.yaml")])
        first, second = ([plain(a) for a in (*r[:4], *r[5:8], r[8]["overwrite"])] for r in received)
        assert second == first
        assert received[1][4].config() == received[0][4].config()  # the strategy, built


@pytest.mark.slow
def test_the_story_fills_its_table(tmp_path, monkeypatch):
    """The default run, at small sizes: every strategy for every set of modalities and seed."""
    story = load_recipe()
    small = {
        "source": {
            "train": product_rows("source/train", rows=64),
            "validation": product_rows("source/validation", rows=64),
        },
        "target": {
            "train": product_rows("target/train", rows=32),
            "validation": product_rows("target/validation", rows=16),
            "test": product_rows("target/test", rows=16),
        },
    }
    monkeypatch.setattr(story, "product_data", lambda seed: small)
    monkeypatch.setattr(story, "PRETRAINING", dict.fromkeys(story.TINY, Phase(1, encoder_lr=1e-3)))
    short = {"from_scratch": Strategy([Phase(1, encoder_lr=1e-3)])}
    short["linear_probe"] = build_strategy("linear_probe", epochs=1)
    short["lp_ft"] = build_strategy("lp_ft", probe_epochs=1, epochs=1)
    monkeypatch.setattr(story, "STRATEGIES", short)
    story.tell_story(tmp_path, 2, TrainingOptions(progress=False), {"arguments": {}})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    together = "image + text + audio"
    assert {name: set(row) for name, row in metrics["table"].items()} == {
        name: {"image", "text", "audio", together} for name in short
    }
    assert all(len(cell) == 2 for row in metrics["table"].values() for cell in row.values())
    last = metrics["table"]["lp_ft"][together][1]
    assert metrics["test"]["product"]["accuracy"] == last  # of the model that is kept
    assert (tmp_path / "chart.png").is_file()
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_failed_overwrite_leaves_the_old_run(data, tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "metrics.json").write_text("{}")
    shared = ("--data", str(data), "--output", "out", "--overwrite")
    done = recipe(*shared, "--image", "tiny-vti", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'tiny-vit'" in done.stderr
    done = recipe(
        *shared, "--image", "tiny-vit", "--tasks", '{"prodct": "classification"}', cwd=tmp_path
    )
    assert done.returncode == 2
    assert (tmp_path / "out" / "metrics.json").read_text() == "{}"


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
