"""`mmtransfer train`: a file is a run, the same as that of the script; mistakes are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmtransfer.cli import main
from mmtransfer.commands.recipe_file import read_recipe
from mmtransfer.data.products import product_rows

from ..conftest import failure

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "tasks": {"product": {"name": "classification", "label_smoothing": 0.1}},
    "fusion": "concat",
    "width": 8,
    "strategy": "linear_probe",
    "strategy_options": {"epochs": 2, "lr": 1e-2},
    "training": {"batch_size": 8, "track": [], "progress": False, "seed": 3},
    "single": False,
}
ENCODERS = {"image": "tiny-vit?width=16&layers=1", "text": "tiny-bert?width=16&layers=1"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for file, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        table = pa.Table.from_pylist(product_rows(f"target/{split}", rows=24))
        pq.write_table(table, tmp_path / f"{file}.parquet")
    return tmp_path


def recipe(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_file_trains_and_what_it_leaves_is_a_recipe_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path / "mine.yaml", data=str(data), encoders=ENCODERS, **SETTINGS)
    main(["train", str(path)])
    first = json.loads((tmp_path / "runs/mine/metrics.json").read_text())
    assert first["test"]["product"]["rows"] == 24
    assert len(first["history"]) == 2
    config = tmp_path / "runs/mine/config.yaml"
    main(["train", str(config), "--output", "again"])
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    assert again["test"] == first["test"]
    main(["train", str(path), "--output", "other", "--strategy_options.epochs", "1"])
    other = yaml.safe_load((tmp_path / "other/config.yaml").read_text())
    before = yaml.safe_load(config.read_text())
    assert other["strategy_options"] == {"epochs": 1, "lr": 1e-2}
    changed = {"strategy_options", "output"}
    assert {k: v for k, v in other.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }


@pytest.mark.slow
def test_script_and_file_are_two_faces_of_one_run(data: Path, tmp_path: Path) -> None:
    """The recipe's script reads the file; the command reads what the script left; rerun as well."""
    path = recipe(tmp_path / "mine.yaml", data=str(data), **ENCODERS, **SETTINGS)
    script = ROOT / "recipes" / "retail_product.py"
    command = [sys.executable, "-m", "mmtransfer.cli"]
    words = [
        [sys.executable, str(script), "--config", str(path), "--output", "script"],
        [*command, "train", str(path), "--output", "file"],
        [*command, "train", "script/config.yaml", "--output", "left"],
        [*command, "rerun", "file"],
    ]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for line in words:
        done = subprocess.run(
            line,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["test"]
        for name in ("script", "file", "left", "file-rerun")
    }
    assert all(test == found["script"] for test in found.values())


def test_configurations_of_the_repository_are_recipes(tmp_path: Path) -> None:
    for path in (ROOT / "recipes" / "configs").glob("*.yaml"):
        read = read_recipe(path)
        assert read["output"] == f"runs/{path.stem}"
        given = yaml.safe_load(path.read_text())
        assert {k: v for k, v in read.items() if k != "output"} == given
    mine = recipe(tmp_path / "x.yaml", image="tiny-vit", text=None, seeds=3, data="d", output="o")
    assert read_recipe(mine) == {"encoders": {"image": "tiny-vit"}, "data": "d", "output": "o"}


def test_numbers_may_be_written_as_people_do(data: Path, tmp_path: Path) -> None:
    text = yaml.safe_dump({"data": str(data), "encoders": ENCODERS, **SETTINGS})
    path = tmp_path / "e.yaml"
    path.write_text(text.replace("lr: 0.01", "lr: 1e-2"))
    assert "1e-2" in path.read_text()
    main(["train", str(path), "--output", str(tmp_path / "out")])
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert config["strategy_options"]["lr"] == 0.01


def test_mistakes_in_a_file_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    assert f"no such recipe: {path}" in failure(["train", path], capsys)
    path.write_text("data: [")
    assert "bad.yaml is no YAML" in failure(["train", path], capsys)
    path.write_text("just words")
    assert "expected options by name, found 'just words'" in failure(["train", path], capsys)
    for settings, told in (
        ({"stategy": "full"}, "no option 'stategy'. Did you mean 'strategy'?"),
        ({"training": {"batchsize": 3}}, "no option 'batchsize'. Did you mean 'batch_size'?"),
        ({"data": "x"}, "the recipe names no encoders, tasks"),
        (
            {"data": str(data), "encoders": ENCODERS, **SETTINGS, "fusion": "gatd"},
            "unknown fusion 'gatd'. Did you mean 'gated'?",
        ),
        (
            {"data": str(data), "encoders": ENCODERS, **SETTINGS, "strategy": "ful"},
            "unknown strategy 'ful'. Did you mean 'full'?",
        ),
    ):
        recipe(path, **settings)
        line = failure(["train", path, "--output", tmp_path / "out"], capsys)
        assert told in line, line
    assert "unknown option --ouput. Did you mean '--output'?" in failure(
        ["train", path, "--ouput", "x"], capsys
    )


def test_the_configuration_of_another_script_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tmp_path / "config.yaml", quick=True)
    (tmp_path / "run.json").write_text(json.dumps({"script": "/x/domain_shift.py"}))
    line = failure(["train", config], capsys)
    assert "'quick' is an option of domain_shift.py" in line
    assert f"python /x/domain_shift.py --config {config}" in line
