"""Repeating a run: what is compared, and what cannot be repeated."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtransfer.cli import main
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.record import read_record
from mmtransfer.training.rerun import compare, compare_weights, rerun_command
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import build_strategy


@pytest.fixture(scope="module")
def finished(products, tmp_path_factory):
    """A run, said to come from a script of its own."""
    root = tmp_path_factory.mktemp("rerun")
    out = root / "out"
    model = build_model(
        {"text": "tiny-bert?width=8"}, {"product": "classification"}, products["train"]
    )
    options = TrainingOptions(progress=False, cache=str(root / "cache"))
    run(model, products, build_strategy("full", epochs=1), options, out, "", {"output": str(out)})
    (root / "train.py").write_text("raise SystemExit(3)")
    record = read_record(out) | {"script": str(root / "train.py"), "directory": str(root)}
    (out / "run.json").write_text(json.dumps(record))
    return out


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def change(where, file, **values):
    path = where / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_run_equals_its_copy(finished, copy):
    metrics = json.loads((copy / "metrics.json").read_text())
    change(copy, "metrics.json", seconds=1e6, timing={})  # no two runs take the same time
    assert [f.name for f in compare(finished, copy) if not f.same] == []
    metrics["history"][0]["train_loss"] += 0.5
    change(copy, "metrics.json", history=metrics["history"])
    change(copy, "run.json", data={}, versions={"torch": "0.1"})
    found = {finding.name: finding for finding in compare(finished, copy) if not finding.same}
    assert set(found) == {"versions", "data", "metrics"}
    assert "at most by 0.5 (history.0.train_loss)" in found["metrics"].detail
    assert not found["versions"].result  # explains a difference, is none
    assert found["data"].result


def test_weights_are_compared_bit_by_bit(finished, copy, tmp_path):
    old, new = finished / "model" / "model.safetensors", copy / "model" / "model.safetensors"
    assert compare_weights(old, new).same
    state = load_file(new)
    bias = state["heads.product.bias"]
    bias[1] += 0.25
    save_file(state, new)
    found = compare_weights(old, new)
    assert not found.same
    assert f"1 of {len(state)} tensors differ, at most by 0.25 (heads.product.bias)" in found.detail
    save_file({"x": torch.tensor([0.0])}, tmp_path / "a")
    save_file({"x": torch.tensor([-0.0])}, tmp_path / "b")
    assert not compare_weights(tmp_path / "a", tmp_path / "b").same
    assert "no " in compare_weights(old, tmp_path / "none").detail
    assert "names, shapes" in compare_weights(old, tmp_path / "a").detail


def test_the_command_repeats_the_processes(finished, tmp_path):
    record = read_record(finished)
    config = ["--config", str(finished / "config.yaml"), "--output", str(tmp_path)]
    plain = rerun_command(finished, record, tmp_path)
    assert plain == [sys.executable, record["script"], *config]
    machine = {"host": "a", "processes": 3, "devices": ["cpu"] * 3}
    several = rerun_command(finished, record | {"machines": [machine]}, tmp_path)
    assert several[-7:-5] == ["--nproc_per_node", "3"]
    assert several[-5:] == plain[1:]
    with pytest.raises(ValueError, match=r"was on 2 machines \(a, a\), expected one"):
        rerun_command(finished, record | {"machines": [machine, machine]}, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda copy: (copy / "run.json").unlink(), "holds no run.json"),
        (lambda copy: (copy / "metrics.json").unlink(), "the run did not finish"),
        (lambda copy: (copy / "config.yaml").write_text("{}"), "holds no arguments"),
        (lambda copy: change(copy, "run.json", script="/no/train.py"), "is gone: /no/train.py"),
        (lambda copy: change(copy, "run.json", script=None), "was not started by a script"),
        (lambda copy: change(copy, "run.json", directory="/no/where"), "is gone: /no/where"),
        (lambda copy: shutil.copytree(copy, f"{copy}-rerun"), "already holds a run"),
        (lambda copy: None, "the repeated run ended with exit code 3"),
    ],
)
def test_what_cannot_be_repeated_is_one_clear_error(copy, capsys, spoil, message):
    spoil(copy)
    with pytest.raises(SystemExit) as ended:
        main(["rerun", str(copy)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_repeated_into_itself(copy, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["rerun", str(copy), "--output", str(copy)])
    assert ended.value.code == 2
    assert "into itself" in capsys.readouterr().err
