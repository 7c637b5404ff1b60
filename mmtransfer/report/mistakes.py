"""The rows that a model got wrong, with what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmtransfer.report.collect import Run

PAIRS, EXAMPLES = 6, 2  # confused pairs that are shown of each task, and rows of each


@dataclass(frozen=True)
class Mistake:
    """probability: of what was predicted; inputs: `Shown` of each column; contributions: of each
    modality to the probability of what was predicted"""

    row: int
    truth: str
    predicted: str
    probability: float
    likelihood: float
    contributions: Sequence[tuple[str, float]] = ()
    inputs: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """Classes that are confused, in how many rows, which share of the true class, and examples."""

    truth: str
    predicted: str
    rows: int
    share: float
    examples: Sequence[Mistake]


@dataclass(frozen=True)
class Wrong:
    """What is shown of the errors in one task."""

    mistakes: Sequence[Mistake] = ()
    pairs: Sequence[Pair] = ()


def wrong_rows(
    run: Run, rows: Sequence[Mapping[str, Any]] | None, count: int, sounds: int
) -> dict[str, Wrong]:
    """The worst mistakes of each task and examples of its confused pairs, with inputs.

    rows: those that were judged; without them mistakes have no inputs, and pairs no examples
    count: mistakes of each task, and 0 for no pairs either; sounds: that are embedded on the
        whole page, in turns of the worst mistakes and each pair
    """
    found = {}
    evaluation = run.evaluation or {"tasks": {}}
    for task, about in evaluation["tasks"].items():
        each = about.get("contributions", {}).get("predictions", {}).get("contributions", {})
        confusion = about.get("confusion", {})
        mistakes = [mistake_of(m, m, each) for m in confusion.get("mistakes", [])[:count]]
        pairs = [
            Pair(
                str(pair["truth"]),
                str(pair["predicted"]),
                pair["rows"],
                pair["share"],
                [mistake_of(pair, e, each) for e in pair["examples"][:EXAMPLES]],
            )
            for pair in confusion.get("pairs", [])[:PAIRS]
            if count and rows is not None and pair.get("examples")
        ]
        found[task] = Wrong(mistakes, pairs)
    if rows is not None:
        of_all = [g for w in found.values() for g in (w.mistakes, *(p.examples for p in w.pairs))]
        add_inputs(of_all, rows, list(evaluation["modalities"]), sounds)
    return found


def mistake_of(
    pair: Mapping[str, Any], row: Mapping[str, Any], each: Mapping[str, Sequence[float]]
) -> Mistake:
    number = row["row"]
    return Mistake(
        number,
        str(pair["truth"]),
        str(pair["predicted"]),
        row["probability"],
        row["likelihood"],
        [(name, values[number]) for name, values in each.items()],
    )


def add_inputs(
    groups: Sequence[Sequence[Mistake]],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    sounds: int,
) -> None:
    """Add what the model saw; groups take turns, so that each has some of the sounds."""
    from mmtransfer.report.inputs import show_value

    left = sounds
    for turn in zip_longest(*groups):
        for mistake in turn:
            for column in columns if mistake is not None else ():
                value = rows[mistake.row].get(column)
                shown = show_value(column, value, sound=left > 0)
                left -= shown.kind == "sound"
                mistake.inputs.append(shown)


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
    if run.judged_on not in (split, None):
        raise ValueError(f"{other}: on {run.judged_on!r}, see --split")
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
