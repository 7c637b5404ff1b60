"""The page about choosing: its scores, distances and limits are those there are, its code runs."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from mmtransfer.registry import scores
from mmtransfer.selection import advice
from mmtransfer.selection.choose import choose
from mmtransfer.selection.command import choose_command
from mmtransfer.selection.distances import DISTANCES
from mmtransfer.selection.scoring import LEAST_UNSEEN

PAGE = (Path(__file__).parents[1] / "docs" / "choose.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python"])
def test_the_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})
    assert capsys.readouterr().out


def test_the_command_has_options_that_there_are() -> None:
    (shown,) = [text for kind, text in BLOCKS if kind == "bash"]
    words = shlex.split(shown.replace("\\\n", " "))
    known = inspect.signature(choose_command).parameters
    assert words[:2] == ["mmtransfer", "choose"]
    assert {word[2:] for word in words if word.startswith("--")} <= set(known)
    assert set(inspect.signature(choose).parameters) == set(known) - {"output", "json"}


def test_tables_and_numbers_are_those_of_the_code() -> None:
    table = PAGE.split("| Name |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.M)) == scores.names()
    distances = PAGE.split("## Distances")[1].split("##")[0]
    assert set(DISTANCES) <= set(re.findall(r"`(\w+)`", distances))
    assert f"below {advice.FEW} |" in PAGE
    assert f"| {advice.FEW} to {advice.MANY} |" in PAGE
    assert f"below {advice.NEAR})" in PAGE
    assert f"at least {LEAST_UNSEEN} are labelled" in PAGE
    defaults = inspect.signature(choose).parameters
    assert f"first {defaults['components'].default} principal" in PAGE
    assert f"most {defaults['most_rows'].default} random" in PAGE
