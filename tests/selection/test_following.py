"""The command and the Python that follow a choice train what was verified."""

from __future__ import annotations

import inspect
import json
import shlex
from typing import Any

import pytest

from mmtransfer.commands.train import train_command
from mmtransfer.selection.following import MODEL, command_for, model_of
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import build_strategy

ENCODERS, TASKS = {"a": "mlp?shape=[2]&widths=[4]"}, {"kind": "classification"}
GIVEN: dict[str, Any] = {
    "model_options": {"fusion": "concat", "width": 8, "dropout": 0.5, "missing": "mask"},
    "strategy_options": {"epochs": 1, "lr": 0.01, "weight_decay": 0.1, "methods": []},
    "training": TrainingOptions(batch_size=4, seed=3, augment={"a": False}, progress=False),
}


def words_of(strategy: str, **given: Any) -> dict[str, str]:
    """What the command says, by option."""
    words = shlex.split(command_for("DIR", ENCODERS, TASKS, strategy, **given))
    assert words[:2] == ["mmtransfer", "train"]
    return dict(zip(words[2::2], words[3::2], strict=True))


def test_without_options_the_command_has_none() -> None:
    assert set(words_of("lp_ft")) == {"--data", "--encoders", "--tasks", "--strategy"}
    quiet = {"training": TrainingOptions(progress=False), "model_options": dict(MODEL)}
    assert words_of("lp_ft", **quiet) == words_of("lp_ft")


def test_verification_builds_what_training_does_by_default() -> None:
    usual = inspect.signature(train_command).parameters
    assert {name: usual[name].default for name in MODEL} == MODEL


def test_drop_out_may_be_given_with_the_fusion() -> None:
    fusion = {"name": "concat", "dropout": 0.1}
    assert model_of({"fusion": fusion}) == {"fusion": fusion, "width": 512, "dropout": 0.1}
    assert words_of("full", model_options={"fusion": fusion})["--dropout"] == "0.1"


def test_all_that_was_given_is_in_the_command() -> None:
    found = words_of("linear_probe", **GIVEN)
    assert json.loads(found["--fusion"]) == {"name": "concat", "missing": "mask"}
    assert found["--width"] == "8"
    assert "--dropout" not in found
    assert json.loads(found["--strategy_options"]) == {"epochs": 1, "lr": 0.01, "weight_decay": 0.1}
    assert found["--methods"] == "[]"
    assert {n: v for n, v in found.items() if n.startswith("--training")} == {
        "--training.batch_size": "4",
        "--training.seed": "3",
        "--training.augment": '{"a": false}',
    }


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("lp_ft", {"probe_epochs": 1, "probe_lr": 0.01, "weight_decay": 0.1}),
        ("full", {"weight_decay": 0.1}),
    ],
)
def test_options_of_the_probe_are_those_of_its_phase(
    strategy: str, expected: dict[str, Any]
) -> None:
    found = json.loads(words_of(strategy, **GIVEN)["--strategy_options"])
    assert found == expected
    build_strategy(strategy, **found)


def test_the_python_runs_and_trains_the_same() -> None:
    data = {"train": [{"a": [k % 2, 1.0], "kind": "pq"[k % 2]} for k in range(8)]}
    code = command_for(data, ENCODERS, TASKS, "linear_probe", **GIVEN)
    names: dict[str, Any] = {"data": data, "build_model": build_model, "run": run}
    names |= {"build_strategy": build_strategy, "TrainingOptions": TrainingOptions}
    exec(code, names)
    fusion = names["model"].fusion
    assert (fusion.width, fusion.dropout, fusion.missing) == (8, 0.5, "mask")
    (phase,) = names["plan"].phases
    assert (phase.epochs, phase.lr, phase.weight_decay) == (1, 0.01, 0.1)
    assert "TrainingOptions(batch_size=4, augment={'a': False}, seed=3)" in code
    assert "seed=3)\n" in code
