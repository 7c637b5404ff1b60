"""`mmtransfer benchmark fusion` leaves table, JSON and pictures, and goes on where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtransfer.cli import main

ENCODERS = '{"image": "tiny-vit?width=16&layers=1", "text": "tiny-bert?width=16&layers=1"}'


@pytest.fixture
def data(picture: Callable[..., bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        labels = [k % 2 for k in range(count)]
        table = {
            "image": [picture(k % 2) if k % 5 else None for k in range(count)],
            "text": [("a pear", "apples")[label] for label in labels],
            "product": labels,
        }
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    return folder


def run(data: Path, *more: str) -> None:
    given = ["benchmark", "fusion", "--data", str(data), "--encoders", ENCODERS]
    given += ["--tasks", '{"product": "classification"}', "--fusions", '["concat", "perceiver"]']
    given += ["--width", "8", "--rates", "[0.01]", "--seeds", "2", "--jobs", "1"]
    given += ["--pooled.epochs", "3", "--pooled.batch_size", "8"]
    given += ["--tokens.epochs", "2", "--tokens.batch_size", "8"]
    main([*given, "--cache", str(data.parent / "cache"), *more])


def test_the_command_leaves_table_results_and_pictures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    run(data, "--output", str(output))
    told = capsys.readouterr().out
    assert "concat" in told
    assert "perceiver" in told
    results = json.loads((output / "results.json").read_text())
    assert {row["fusion"] for row in results["summary"]} == {"concat", "perceiver"}
    assert results["data"]["train"] == 24
    assert results["versions"]["torch"]
    for name in ("accuracy", "subsets", "noise"):
        assert (output / f"{name}.png").stat().st_size > 10_000
    done = {file.name: file.stat().st_mtime_ns for file in (output / "cells").iterdir()}
    run(data, "--output", str(output))
    assert done == {file.name: file.stat().st_mtime_ns for file in (output / "cells").iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--fusions", '["concta"]'], "unknown fusion 'concta'.*mean 'concat'"),
        (["--tasks", '{"prodct": "classification"}'], "no column 'prodct'.*mean 'product'"),
        (["--encoders", "null"], "needs encoders and tasks"),
    ],
)
def test_mistakes_are_told_before_anything_is_encoded(
    data: Path,
    tmp_path: Path,
    change: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(data, "--output", str(tmp_path / "out"), *change)
    error = capsys.readouterr().err

    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
