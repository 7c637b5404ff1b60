"""The page about penalties: its methods and options are those there are, its code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import yaml

from mmtransfer.registry import methods
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

PAGE = (Path(__file__).parents[1] / "docs" / "transfer" / "penalties.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S))


def test_the_recipe_is_read():
    found = yaml.safe_load(BLOCKS["yaml"])
    strategy = build_strategy(found["strategy"], methods=found["methods"])
    assert [type(method).__name__ for method in strategy.methods] == ["L2SP", "EMA"]
    assert strategy.phases[0].weight_decay == 0


def test_the_table_has_the_options_of_each_method_and_the_text_a_paragraph():
    lines = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) == 12
    for _, name, _, options, _ in lines:
        name = name.strip(" `")
        known = inspect.signature(methods.get(name)).parameters
        assert re.findall(r"`(\w+)`", options) == list(known), name
        assert f"\n**`{name}`** (" in PAGE


def test_the_curve_is_drawn():
    rows = [{"a": [i, 1.0], "kind": "xy"[i % 2]} for i in range(8)]
    encoders = {"a": "mlp?shape=[2]&widths=[4]"}
    model = build_model(encoders, {"kind": "classification"}, rows, "concat", 4)
    strategy = build_strategy("wise_ft", probe_epochs=1, epochs=1)
    trainer = Trainer(model, rows, None, strategy, TrainingOptions(progress=False))
    trainer.fit()
    space = {"model": model, "trainer": trainer, "rows": rows}
    exec(BLOCKS["python"], space)
    assert len(space["curve"]) == 11
    assert all(0 <= value <= 1 for value in space["curve"].values())
