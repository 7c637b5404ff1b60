"""The directory of a run, its configuration, the rate curve, the windows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.reading import windows
from mmtransfer.training.run import (
    build_model,
    check_output,
    clear_output,
    plain,
    run,
    write_config,
)
from mmtransfer.training.setup import make_accelerator, rate_curve
from mmtransfer.transfer.base import Phase, build_strategy


def test_an_output_directory_that_holds_a_run_is_refused(tmp_path):
    out = tmp_path / "out"
    check_output(out, overwrite=False)
    clear_output(out)
    write_config(out, {"data": "here"})
    check_output(out, overwrite=False)  # a configuration alone is nothing that could be lost
    (out / "metrics.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"already holds a run \(metrics.json\).*--overwrite"):
        check_output(out, overwrite=False)
    check_output(out, overwrite=True)
    assert (out / "metrics.json").exists()  # replaced only when the new run begins
    clear_output(out)
    assert not (out / "metrics.json").exists()
    assert (out / "notes.txt").exists()  # what the run did not write stays


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match="is a file, expected a directory"):
        check_output(tmp_path / "out", overwrite=True)


def test_logs_of_no_run_of_ours_stay(tmp_path):
    (tmp_path / "logs").mkdir()
    clear_output(tmp_path)
    assert (tmp_path / "logs").is_dir()


def test_all_splits_are_checked_before_training(products, tmp_path):
    data = products | {"test": [products["test"][0] | {"product": "brick"}]}
    (tmp_path / "metrics.json").write_text("{}")
    model = build_model(
        {"text": "tiny-bert"}, {"product": "classification"}, data["train"], width=8
    )
    plan, options = build_strategy("full", epochs=1), TrainingOptions(progress=False)
    with pytest.raises(ValueError, match="test column 'product': label 'brick' is none of the 16"):
        run(model, data, plan, options, tmp_path, overwrite=True)
    assert (tmp_path / "metrics.json").exists()
    with pytest.raises(ValueError, match="unknown split 'val'. Did you mean 'validation'"):
        run(model, {"train": data["train"], "val": data["validation"]}, plan, options)


def test_the_configuration_is_plain_yaml(tmp_path):
    arguments = {"output": Path("runs/x"), "training": TrainingOptions(seed=3), "tasks": {"a": "b"}}
    write_config(tmp_path, arguments)
    read = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert read == plain(arguments)
    assert read["training"]["seed"] == 3
    assert read["output"] == "runs/x"


def test_a_task_without_a_column_suggests_the_nearest():
    with pytest.raises(ValueError, match="no column 'prodct'. Did you mean 'product'"):
        build_model({"text": "tiny-bert"}, {"prodct": "classification"}, [{"product": 1}])


def test_the_rate_rises_and_falls_as_said():
    curve = rate_curve(Phase(1, warmup=0.1), 100)
    rates = [curve(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0)
    middle = 10 + 45
    assert rates[middle] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[99] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rate_curve(Phase(1, warmup=0.0, schedule="constant"), 10)(7) == 1.0


def test_windows_hold_every_batch_once():
    assert list(windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "Did you mean 'tensorboard'"), ("wandb", "'wandb' is not installed")],
)
def test_a_tracker_that_is_not_there_is_an_error(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_accelerator(TrainingOptions(track=[name]), tmp_path)
