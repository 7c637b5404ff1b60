"""The rows that a model got most wrong, with what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtransfer.report.collect import Run


@dataclass(frozen=True)
class Mistake:
    """probability: of what was predicted; inputs: `Shown` of each column; contributions: of each
    modality to the probability of what was predicted"""

    row: int
    truth: str
    predicted: str
    probability: float
    likelihood: float
    inputs: Sequence[Any] = ()
    contributions: Sequence[tuple[str, float]] = ()


def worst(
    run: Run, rows: Sequence[Mapping[str, Any]] | None, count: int, sounds: int
) -> dict[str, list[Mistake]]:
    """The worst mistakes of each task, with inputs where there are rows.

    count: of each task; sounds: how many are embedded on the whole page
    """
    found: dict[str, list[Mistake]] = {}
    left = sounds
    evaluation = run.evaluation or {"tasks": {}}
    for task, about in evaluation["tasks"].items():
        each = about.get("contributions", {}).get("predictions", {}).get("contributions", {})
        for mistake in about.get("confusion", {}).get("mistakes", [])[:count]:
            number, inputs = mistake["row"], []
            for column in evaluation["modalities"] if rows is not None else ():
                from mmtransfer.report.inputs import show_value

                assert rows is not None
                shown = show_value(column, rows[number].get(column), sound=left > 0)
                left -= shown.kind == "sound"
                inputs.append(shown)
            shares = [(name, values[number]) for name, values in each.items()]
            truth, predicted = str(mistake["truth"]), str(mistake["predicted"])
            surely, hardly = mistake["probability"], mistake["likelihood"]
            told = Mistake(number, truth, predicted, surely, hardly, inputs, shares)
            found.setdefault(task, []).append(told)
    return found


def rows_of(run: Run, data: str, split: str) -> Sequence[Mapping[str, Any]]:
    """The rows that an evaluation was about.

    Raises `ValueError` where their number or labels show that it was about others.
    """
    from mmtransfer.data.rows import columns_of, load_rows, with_label_names
    from mmtransfer.registry import nearest

    assert run.evaluation is not None
    splits = load_rows(data)
    if split not in splits:
        raise ValueError(f"{data} has no split {split!r}.{nearest(split, splits)}")
    rows = splits[split]
    other = f"{run.directory} was evaluated on other rows than {split!r} of {data}"
    if len(rows) != run.evaluation["rows"]:
        raise ValueError(f"{other}: {run.evaluation['rows']} rows, found {len(rows)}")
    for task, about in run.evaluation["tasks"].items():
        for name in (task, *run.evaluation["modalities"]):
            if name not in columns_of(rows):
                raise ValueError(f"{other}: there is no column {name!r}")
        named = with_label_names(rows, task)
        for mistake in about.get("confusion", {}).get("mistakes", []):
            label = named[mistake["row"]][task]
            if str(label) != str(mistake["truth"]):
                raise ValueError(
                    f"{other}: row {mistake['row']} is {label!r}, not {mistake['truth']!r}"
                )
    return rows


def evaluated(run: Run, data: str, split: str, batch_size: int) -> None:
    """Evaluate the model of a run, into its directory."""
    from mmtransfer.evaluation.command import evaluate_saved

    model = run.directory / "model"
    if not model.is_dir():
        raise FileNotFoundError(f"{run.directory} holds no model to evaluate")
    where = run.directory / Path("evaluation")
    evaluate_saved(str(model), data, where, split, batch_size=batch_size, progress=True)
