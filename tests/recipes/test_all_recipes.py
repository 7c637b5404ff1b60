"""Every recipe, offline and quickly: it tells its story to the end and leaves table and chart."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmtransfer import TrainingOptions, build_strategy
from mmtransfer.training.recipe import shortened

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "retail_product")
#: what a story begins with: no transfer, or none of the knowledge
WITHOUT = {"domain_shift": "source only", "pca_svd_features": "random network"}
QUIET = TrainingOptions(progress=False, track=[])


def load(name: str, monkeypatch: pytest.MonkeyPatch):
    specification = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    story = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(story)
    monkeypatch.setattr(story, "end_processes", lambda: None)
    return story


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_tells_its_story_offline(name, tmp_path, monkeypatch, capsys):
    story = load(name, monkeypatch)
    out = tmp_path / "out"
    story.main(quick=True, seeds=1, training=QUIET, output=out)
    table = json.loads((out / "metrics.json").read_text())["table"]
    assert table
    for row, cells in table.items():
        if row == "forgotten":
            continue
        assert len(cells) > 1, row
        assert all(len(scores) == 1 and 0 <= scores[0] <= 1 for scores in cells.values()), row
    compared = set.union(*(set(cells) for cells in table.values()))
    assert WITHOUT.get(name, "from scratch") in compared
    with Image.open(out / "chart.png") as chart:
        assert min(chart.size) > 300
    printed = capsys.readouterr().out
    assert "metrics, chart and logs are in" in printed
    assert any(row in printed for row in table)

    with pytest.raises(FileExistsError, match="--overwrite"):
        story.main(quick=True, seeds=1, training=QUIET, output=out)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_lines_tell_how_to_launch(name):
    text = (RECIPES / f"{name}.py").read_text()
    head = text.split('"""')[1]
    assert f"    python recipes/{name}.py\n" in head
    assert f"recipes/{name}.py --root DIR" in head or f"recipes/{name}.py --data " in head


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained(name, monkeypatch):
    story = load(name, monkeypatch)
    told = inspect.getdoc(story.main)
    for option in inspect.signature(story.main).parameters:
        assert f"\n    {option}: " in told, option


def test_a_recipe_runs_as_a_command(tmp_path):
    call = [sys.executable, str(RECIPES / "medical_imaging.py"), "--quick", "--seeds", "1"]
    call += ["--training.progress", "false", "--training.track", "[]", "--output", "out"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from scratch" in done.stdout
    assert (tmp_path / "out" / "chart.png").is_file()
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_a_shortened_strategy_keeps_its_adapters():
    whole = build_strategy("lora", methods=["ema"], merge=False)
    short = shortened(whole)
    assert [phase.epochs for phase in short.phases] == [1]
    assert short.config() | {"phases": None} == whole.config() | {"phases": None}
