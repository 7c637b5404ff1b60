"""`mmtransfer choose` on files, and that it is light until it is used."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmtransfer.cli import main


@pytest.fixture
def data(picture: Callable[..., bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        labels = [k % 2 for k in range(count)]
        table = {
            "image": [picture(k) if k % 5 else None for k in range(count)],
            "text": [("a pear", "apples")[label] for label in labels],
            "product": labels,
        }
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    return folder


def test_the_command_ranks_verifies_and_prints_the_recipe(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    given = ["choose", "--data", str(data), "--encoders", "tiny-vit?width=16&layers=1"]
    given += ["tiny-bert?width=16&layers=1", "--tasks", '{"product": "classification"}']
    given += ["--verify", "2", "--model_options", '{"fusion": "sum", "width": 8}']
    given += ["--strategy_options", '{"epochs": 2}', "--training.batch_size", "8"]
    given += ["--source", str(data), "--budget_minutes", "5"]
    main([*given, "--training.cache", str(tmp_path / "cache"), "--output", str(output)])
    told = capsys.readouterr().out
    found = json.loads((output / "choice.json").read_text())
    assert found["candidates"][0]["label"].endswith("tiny-bert")
    assert found["candidates"][0]["score"] == 1
    assert [c["trained"] is not None for c in found["candidates"]] == [True, True, False]
    assert found["distances"][str(data)]["text"]["frechet"] == pytest.approx(0, abs=1e-9)
    assert found["versions"]["torch"]
    assert found["advice"]["strategy"] == "lp_ft"
    assert (output / "choice.png").stat().st_size > 10_000
    assert found["command"] in told
    words = shlex.split(found["command"])
    assert words[:2] == ["mmtransfer", "train"]
    assert json.loads(words[words.index("--encoders") + 1]) == {
        "text": "tiny-bert?width=16&layers=1"
    }
    main([*words[1:], "--output", str(tmp_path / "trained")])
    kept = yaml.safe_load((tmp_path / "trained" / "config.yaml").read_text())
    assert (kept["fusion"], kept["width"], kept["dropout"]) == ("sum", 8, 0.5)
    assert kept["strategy_options"] == {"probe_epochs": 2}
    assert kept["training"]["batch_size"] == 8
    assert kept["training"]["cache"] == str(tmp_path / "cache")


def test_json_is_all_that_is_printed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["choose", "--data", str(data), "--encoders", "tiny-bert?width=16&layers=1"]
    given += ["--tasks", '{"product": "classification"}', "--json", "--verify", "1"]
    main([*given, "--strategy_options", '{"epochs": 1}'])
    assert json.loads(capsys.readouterr().out)["command"].startswith("mmtransfer train")


def test_a_mistake_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["choose", "--data", str(data), "--encoders", "tiny-vit", "--tasks"]
    with pytest.raises(SystemExit) as ended:
        main([*given, '{"prodct": "classification"}'])
    assert ended.value.code == 2
    assert "no column 'prodct'" in capsys.readouterr().err.splitlines()[-1]


def test_scores_are_listed_without_torch() -> None:
    code = "from mmtransfer.cli import main; main(['scores'])\n"
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "logme" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
