"""What follows a choice: the command, or for rows in memory the Python, that trains it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmtransfer.selection.candidates import EncoderSet
from mmtransfer.training.options import TrainingOptions

#: what `mmtransfer train` builds without options, and so what verification does
MODEL: Mapping[str, Any] = {"fusion": "gated", "width": 512, "dropout": 0.5}
#: what options of the verified `linear_probe` are called in each strategy, None for left out; the
#: first phase of `lp_ft` is such a probe
RENAMED: Mapping[str, Mapping[str, str | None]] = {
    "linear_probe": {},
    "lp_ft": {"epochs": "probe_epochs", "lr": "probe_lr"},
    "full": {"epochs": None, "lr": None},  # frozen encoders say nothing about these
}


def command_for(
    data: Any,
    encoders: EncoderSet,
    tasks: Mapping[str, Any],
    strategy: str,
    model_options: Mapping[str, Any] | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    training: TrainingOptions | None = None,
) -> str:
    """Command or Python with all options that were given, so that it trains what was verified."""
    model = model_of(model_options)
    planned = options_of(strategy, strategy_options or {})
    changed = changes(training or TrainingOptions())
    if not isinstance(data, str | Path):
        return python_for(encoders, tasks, strategy, model, planned, changed)
    methods = planned.pop("methods", None)
    beyond = {name: value for name, value in model.items() if name not in MODEL}
    if beyond:
        own = model["fusion"]
        own = own if isinstance(own, Mapping) else {"name": own}
        model = {name: model[name] for name in MODEL} | {"fusion": {**own, **beyond}}
    words = ["mmtransfer", "train", "--data", str(data)]
    words += ["--encoders", json.dumps(dict(encoders)), "--tasks", json.dumps(dict(tasks))]
    for name, value in model.items():
        words += [f"--{name}", worded(value)] if value != MODEL[name] else []
    words += ["--strategy", strategy]
    words += ["--strategy_options", worded(planned)] if planned else []
    words += ["--methods", worded(methods)] if methods is not None else []
    for name, value in changed.items():
        words += [f"--training.{name}", worded(value)]
    return shlex.join(words)


def python_for(
    encoders: EncoderSet,
    tasks: Mapping[str, Any],
    strategy: str,
    model: Mapping[str, Any],
    planned: Mapping[str, Any],
    changed: Mapping[str, Any],
) -> str:
    """The same for rows in memory, `data` by split."""
    seed = {"seed": changed["seed"]} if "seed" in changed else {}
    parts = f'{dict(encoders)!r}, {dict(tasks)!r}, data["train"]'
    return (
        f"model = build_model({parts}, {keywords({**model, **seed})})\n"
        f"plan = build_strategy({', '.join(filter(None, (repr(strategy), keywords(planned))))})\n"
        f"run(model, data, plan, TrainingOptions({keywords(changed)}))"
    )


def model_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of `build_model`: those that are given, the others as `mmtransfer train` has them."""
    given = given or {}
    fusion = given.get("fusion")
    own = (
        {"dropout": fusion["dropout"]}
        if isinstance(fusion, Mapping) and "dropout" in fusion
        else {}
    )
    return {**MODEL, **own, **given}


def options_of(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `linear_probe` as another strategy calls them, less what it has no use for."""
    names = {name: RENAMED[strategy].get(name, name) for name in given}
    return {new: given[name] for name, new in names.items() if new is not None}


def changes(training: TrainingOptions) -> dict[str, Any]:
    """What differs from the defaults and matters to what is trained: bars do not."""
    usual = TrainingOptions()
    found = {option.name: getattr(training, option.name) for option in fields(training)}
    return {
        name: value
        for name, value in found.items()
        if name != "progress" and value != getattr(usual, name)
    }


def worded(value: Any) -> str:
    """A value as an option of a command takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
