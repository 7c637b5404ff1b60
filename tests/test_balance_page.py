"""The page about balance: its methods and options are those there are, its code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

from mmtransfer.methods.base import build_method
from mmtransfer.registry import methods
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

PAGE = (Path(__file__).parents[1] / "docs" / "balance.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def block(language: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language]
    return found


def test_the_recipe_is_read():
    found = yaml.safe_load(block("yaml"))["methods"]
    assert [type(build_method(spec)).__name__ for spec in found] == ["ModalityDropout", "MMPareto"]


def test_the_table_has_the_options_of_each_method():
    table = PAGE.split("| Name |")[1].split("\n\n")[0]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert len(lines) == 6
    for _, name, _, _, options, _ in lines:
        known = inspect.signature(methods.get(name.strip(" `"))).parameters
        assert re.findall(r"`(\w+)`", options) == list(known)


def test_a_method_of_ones_own_trains(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(methods, "_members", dict(methods._members))
    exec(block("python"), {})
    rows = [{"a": [i, 1.0], "b": [-i, 1.0], "kind": "xy"[i % 2]} for i in range(8)]
    encoders = dict.fromkeys("ab", "mlp?shape=[2]&widths=[4]")
    model = build_model(encoders, {"kind": "classification"}, rows, "concat", 4)
    strategy = build_strategy("full", methods=["strongest_head"], epochs=1)
    trainer = Trainer(model, rows, None, strategy, TrainingOptions(progress=False))
    trainer.fit()
    assert torch.isfinite(torch.tensor(trainer.losses)).all()
