"""`mmtransfer choose`: from a data directory and encoders to table, JSON, picture and command."""

from __future__ import annotations

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

from mmtransfer.selection.choose import choose
from mmtransfer.selection.report import draw, show
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import plain
from mmtransfer.training.surroundings import hardware, versions


def choose_command(
    data: str | None = None,
    encoders: list[str] | dict[str, Any] | None = None,
    tasks: dict[str, Any] | None = None,
    score: str = "linear_probe",
    source: list[str] | None = None,
    budget_minutes: float | None = None,
    verify: int = 0,
    most_sets: int = 100,
    most_rows: int = 4000,
    components: int = 256,
    model_options: dict[str, Any] | None = None,
    strategy_options: dict[str, Any] | None = None,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Rank encoders and sets of them before training; name a strategy and the command.

    Args:
        data: directory with train, val and test parquet files, or hub id
        encoders: as COLUMN=SPECIFICATION, or without COLUMN= where it can read one column only
        tasks: what to learn, by target column; the first one counts
        score: of features, by name (see `mmtransfer scores`)
        source: other data with such columns, whose distance to this is measured
        budget_minutes: that training may take
        verify: train so many of the best and compare with what was predicted
        most_sets: how many sets of encoders are tried
        most_rows: on how many random training rows
        components: principal components of each encoder that count
        model_options: of the verification: fusion, width, dropout, options of the fusion
        strategy_options: of the verification, a linear probe: epochs, lr, weight_decay
        training: batch size, precision, seed, cache and the like
        output: directory for choice.json and choice.png
        json: print JSON
    """
    if not data or not encoders or not tasks:
        raise ValueError("data, encoders and tasks are needed: --data, --encoders and --tasks")
    choice = choose(
        data,
        encoders,
        tasks,
        score,
        source,
        budget_minutes,
        verify,
        most_sets,
        most_rows,
        components,
        model_options,
        strategy_options,
        replace(training, progress=training.progress and not json),
    )
    about = {"versions": versions(), "hardware": hardware(), "data": data, "tasks": tasks}
    text = dumps(about | plain(choice.summary()), indent=1)
    if json:
        print(text)
    else:
        show(choice)
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / "choice.json").write_text(text + "\n")
    draw(choice, output / "choice.png")
    if not json:
        print(f"\nchoice.json and choice.png are in {output}")
