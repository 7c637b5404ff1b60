"""The command: what it lists and predicts, one line per error, and nothing heavy before it must."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmtransfer import registry
from mmtransfer.cli import main
from mmtransfer.data.store import finish_store, store_key, write_shard
from mmtransfer.encoders.base import build_encoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import Classification

from .conftest import failure

Maker = Callable[..., bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny saved model of pictures and texts."""
    torch.manual_seed(0)
    encoders = {
        "image": build_encoder("tiny-vit?width=16&layers=1"),
        "text": build_encoder("tiny-bert?width=16&layers=1"),
    }
    fusion = build_fusion("gated", {"image": 16, "text": 16}, 8)
    tasks = {"product": Classification(["apple", "pear", "größe"])}
    directory = tmp_path_factory.mktemp("cli") / "model"
    TransferModel(encoders, fusion, tasks).save_pretrained(directory)
    return directory


@pytest.fixture
def rows(picture: Maker, tmp_path: Path) -> Path:
    """Three rows: both modalities, text alone, picture alone; and a column of no interest."""
    path = tmp_path / "rows.parquet"
    pictures = [picture(0), None, picture(1)]
    table = {"image": pictures, "text": ["apple", "a pear", None], "price": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize(
    "family", ["encoders", "fusions", "tasks", "strategies", "methods", "scores"]
)
def test_every_registered_name_is_listed_with_its_line(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([family])
    shown = capsys.readouterr().out
    described = getattr(registry, family).describe()
    assert described
    for name, line in described.items():
        # A narrow terminal may break the line, but nothing of it may be lost.
        words = r"\s+".join(map(re.escape, [name, *line.split()]))
        assert re.search(rf"^{words}\s*$", shown, re.MULTILINE), f"{name}: {line}\n{shown}"


def test_all_ways_of_transfer_are_among_the_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    main(["strategies"])
    shown = capsys.readouterr().out
    for name in [*registry.strategies.names(), *registry.methods.names(), "TrAdaBoost"]:
        assert re.search(rf"^{name}\s+\S", shown, re.MULTILINE), name
    main(["strategies", "--json"])
    assert json.loads(capsys.readouterr().out) == registry.strategies.describe()


def test_predictions_are_one_json_line_per_row(
    model: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", str(model), str(rows)])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    table = pq.read_table(rows).to_pylist()
    assert answers == TransferModel.from_pretrained(model).predict(table)
    assert answers[1]["weights"] == {"image": 0, "text": 1}
    assert answers[2]["weights"] == {"image": 1, "text": 0}


def test_predictions_can_go_to_a_file(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", str(model), str(rows)])
    shown = capsys.readouterr().out
    target = tmp_path / "answers.jsonl"
    main(["predict", str(model), str(rows), "--output", str(target), "--batch_size", "3"])
    assert capsys.readouterr().out == f"3 rows written to {target}\n"
    assert target.read_text() == shown


def test_mistakes_end_with_one_line_and_code_2(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.parquet"
    assert f"no such file: {missing}" in failure(["predict", model, missing], capsys)
    assert "no config.json" in failure(["predict", tmp_path, rows], capsys)
    (tmp_path / "text.parquet").write_text("no parquet at all")
    assert "no readable parquet" in failure(["predict", model, tmp_path / "text.parquet"], capsys)
    pq.write_table(pa.table({"txt": ["apple"]}), tmp_path / "other.parquet")
    line = failure(["predict", model, tmp_path / "other.parquet"], capsys)
    assert "['image', 'text']" in line
    assert "'txt'" in line
    line = failure(["predict", model, rows, "--on_error", "rise"], capsys)
    assert "unknown on_error 'rise'" in line
    assert "'raise'" in line
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in failure(["predict", nowhere, rows], capsys)


def test_an_unreadable_value_is_named_or_counts_as_missing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"image": [b"damaged"], "text": ["apple"]}), path)
    assert "row 0, column 'image' cannot be read" in failure(["predict", model, path], capsys)
    main(["predict", str(model), str(path), "--on_error", "missing"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["weights"] == {"image": 0, "text": 1}


WRONG = [["predikt"], ["predict"], ["fusions", "--all"], ["cache"], ["cache", "lst"]]


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def store(cache: Path, number: int, days: int, **about: Any) -> Path:
    """A feature store that was used some days ago."""
    key = store_key(number)
    part, final = cache / "features" / f"{key}.0123abcd.part", cache / "features" / key
    shard = write_shard(part, 0, [[np.ones((1, 4), np.float32)] * 3], "fp16")
    found = {"column": "text", "depth": 0, "augmentation": None, "precision": "fp16", "width": 4}
    found |= {"unreadable": [], "encoder class": "Speaking", "shards": [shard], **about}
    finish_store(part, final, found)
    used = time.time() - days * 86400
    os.utime(final / "store.json", (used, used))
    return final


def test_the_cache_is_listed_with_its_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        store(tmp_path, 0, 1),
        store(tmp_path, 1, 2, depth=3, column="größe"),
        store(tmp_path, 2, 3, augmentation=[{"text": True}, 1, 0]),
    ]
    main(["cache", "list", "--cache", str(tmp_path), "--json"])
    listed = json.loads(capsys.readouterr().out)
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in found]
    assert [entry["bytes"] for entry in listed["stores"]] == sizes
    assert [entry["key"] for entry in listed["stores"]] == [path.name for path in found]
    assert (listed["bytes"], listed["cache"]) == (sum(sizes), str(tmp_path))
    monkeypatch.setenv("MMTRANSFER_CACHE", str(tmp_path))
    main(["cache", "list"])
    lines = capsys.readouterr().out.splitlines()
    headings = ["column", "encoder", "what", "rows", "precision", "size", "last used", "key"]
    assert re.split(r"\s{2,}", lines[0].strip()) == headings
    expected = ["features", "activations below stage 3", "features, view 2"]
    for line, path, what in zip(lines[1:4], found, expected, strict=True):
        shown = re.split(r"\s{2,}", line.strip())
        assert shown[1:5] == ["Speaking", what, "3", "fp16"]
        assert shown[-1] == path.name
    assert lines[2].startswith("größe")
    assert lines[4:] == [f"3 in {tmp_path}, {sum(sizes) / 1e3:.1f} kB"]


def test_the_cache_is_verified_and_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = store(tmp_path, 0, 1), store(tmp_path, 1, 20)
    main(["cache", "verify", "--cache", str(tmp_path)])
    assert capsys.readouterr().out == "2 read, 0 damaged\n"
    (new / "tokens-0.bin").write_bytes(bytes(24))
    for format in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["cache", "verify", "--cache", str(tmp_path), *format])
        assert ended.value.code == 1
        assert f"{new.name}" in (out := capsys.readouterr().out)
        assert "tokens-0.bin or ends-0.npy is not what was written" in out
        assert old.name not in out
    prune = ["cache", "prune", "--cache", str(tmp_path)]
    size = sum(file.stat().st_size for file in old.iterdir())
    main([*prune, "--dry_run", "--days", "10"])
    assert f"1 would be removed, {size / 1e3:.1f} kB" in capsys.readouterr().out
    assert old.exists()
    main([*prune, "--days", "10", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [entry["key"] for entry in said["removed"]] == [old.name]
    assert (said["bytes"], said["dry_run"]) == (size, False)
    assert not old.exists()
    main(prune)
    assert capsys.readouterr().out == "0 removed, 0.0 kB\n"
    main([*prune, "--damaged"])
    out = capsys.readouterr().out
    assert new.name in out
    assert "1 removed" in out
    assert list((tmp_path / "features").iterdir()) == []
    assert "days must not be negative, found -1.0" in failure([*prune, "--days=-1"], capsys)
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in failure(["cache", "list", "--cache", nowhere], capsys)


@pytest.mark.parametrize(
    "script",
    [
        "from mmtransfer.cli import main\ntry: main(['cache', 'prune', '--help'])\n"
        "except SystemExit as e: assert not e.code",
        "import mmtransfer; mmtransfer.__version__",
        "import mmtransfer.registry, mmtransfer.cli",
        "from mmtransfer.cli import main\ntry: main(['--help'])\n"
        "except SystemExit as e: assert not e.code",
    ],
)
def test_neither_importing_nor_asking_for_help_loads_torch(script: str) -> None:
    script += (
        "\nimport sys\nheavy = {'torch', 'transformers', 'datasets', 'accelerate'} & {*sys.modules}"
        "\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
