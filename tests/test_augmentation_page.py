"""The page about augmentation: its settings are read, its code runs, its defaults are true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmtransfer.data.augment import AUGMENTATIONS, SpecAugment
from mmtransfer.data.augment.image import random_operations
from mmtransfer.training.options import TrainingOptions
from mmtransfer.transfer.base import build_strategy

PAGE = (Path(__file__).parents[1] / "docs" / "augmentation.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def block(language: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language]
    return found


def test_the_settings_are_read():
    settings = yaml.safe_load(block("yaml"))
    TrainingOptions(**settings["training"])
    strategy = build_strategy("full", settings["methods"])
    assert [type(m).__name__ for m in strategy.methods] == ["ModalityDropout", "CutMix"]


@pytest.mark.slow
def test_the_code_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block("python")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def defaults(factory: Any) -> dict[str, Any]:
    return {n: p.default for n, p in inspect.signature(factory).parameters.items()}


def test_the_table_has_every_option_with_its_default():
    found: dict[str, dict[str, Any]] = {}
    for modality, names, values, text in re.findall(
        r"^\| (\w+) (`[^|]*) \| ([^|]*) \| (.*) \|$", PAGE, re.M
    ):
        listed = [yaml.safe_load(value) for value in values.split(",")]
        options = re.findall(r"`(\w+)`", names)
        found.setdefault(modality, {}).update(zip(options, listed, strict=True))
        for name, factory in (("rand_augment", random_operations), ("spec_augment", SpecAugment)):
            if options == [name]:
                nested = re.search(r"`(\{.*?\})`", text)
                assert nested is not None
                assert yaml.safe_load(nested[1]) == defaults(factory)
    assert found == {name: defaults(factory) for name, factory in AUGMENTATIONS.items()}
