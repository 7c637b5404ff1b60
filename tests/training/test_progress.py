"""Bars and lines show names as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmtransfer.training.progress import Progress

NAME = "a[/red]:x: mlp"


def test_a_line_is_neither_markup_nor_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(True).line(NAME)
    assert capsys.readouterr().err == f"{NAME}\n"


def test_a_bar_is_no_markup() -> None:
    progress = Progress(True, NAME)
    progress.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.bar("train", 2) as advance:
        advance(2)
    assert f"{NAME}: train" in progress.console.file.getvalue()
