"""The page about targets without labels: its options are those there are, its code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mmtransfer.registry import methods

PAGE = (Path(__file__).parents[1] / "docs" / "transfer" / "alignment.md").read_text()


def test_the_example_runs_and_alignment_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("MMTRANSFER_CACHE", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    found: dict = {}
    exec(code, found)
    assert found["accuracy"]["mmd"] > found["accuracy"][None] + 0.1


def test_the_table_has_the_options_of_each_method():
    table = PAGE.split("| Name |")[1].split("\n\n")[0]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert len(lines) == 8
    for _, name, _, _, options, _ in lines:
        known = inspect.signature(methods.get(name.strip(" `"))).parameters
        assert re.findall(r"`(\w+)`", options) == list(known)
        assert f"**`{name.strip(' `')}`.**" in PAGE
