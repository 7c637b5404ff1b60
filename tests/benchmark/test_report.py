"""Tables and pictures of the fusion benchmark, whatever tasks and modalities are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmtransfer.benchmark.report import draw, show

TASK, OTHER, COLUMN, FUSION = "$k_$[/red]:x:", "$o_$[/blue]", "a$b_$[/green]:x:", "$f_$[/b]"


def results() -> dict[str, Any]:
    scores = {TASK: 0.5, OTHER: 0.25}
    run = {
        "test": scores,
        "validation": scores,
        "parameters": 1000,
        "seconds": 1.0,
        "cpu": 1.0,
        "subsets": {COLUMN: scores},
        "noise": {COLUMN: {"1.0": scores}},
    }
    return {
        "task": TASK,
        "members": {FUSION: [run]},
        "rates": {FUSION: 0.01},
        "trained without": {FUSION: {COLUMN: [run]}},
    }


def test_names_are_neither_markup_nor_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    show(results())
    told = capsys.readouterr().out
    for name, times in ((TASK, 2), (OTHER, 1), (COLUMN, 2), (FUSION, 3)):
        assert told.count(name) == times


@pytest.mark.filterwarnings("ignore:Attempting to set identical")
def test_names_are_no_formulas(tmp_path: Path) -> None:
    assert all(path.is_file() for path in draw(results(), tmp_path))
