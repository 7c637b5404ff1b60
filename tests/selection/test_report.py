"""What is said of a choice, whatever its tasks, columns and encoders are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtransfer.selection.advice import Advice
from mmtransfer.selection.choose import Choice
from mmtransfer.selection.ranking import Candidate
from mmtransfer.selection.report import draw, show


def test_names_are_neither_formulas_nor_markup_nor_emoji(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column, task, source = "a$b_$[/red]:x:", "$k_$[/blue]", "[/green]"
    label = f"{column}: mlp"
    best = Candidate({column: "mlp"}, label, 0.5, None, 1, 1.0, 0.0, trained=0.5)
    choice = Choice(
        task,
        "linear_probe",
        "9 train rows",
        [best],
        best,
        Advice("lp_ft", (), {}),
        [f"{label} has the highest"],
        "mmtransfer train",
        labels=9,
        classes=3,
        untried=0,
        distances={source: {column: {"proxy_a": 1.0}}},
    )
    show(choice)
    told = capsys.readouterr().out
    assert f"{task}: linear_probe of 9 train rows" in told
    assert source in told
    assert told.count(column) == 4  # ranking, distances, recommendation, reason
    draw(choice, tmp_path / "choice.png")
    assert (tmp_path / "choice.png").is_file()
