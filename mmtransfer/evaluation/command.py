"""`mmtransfer evaluate`: from a saved model and a data directory to JSON, pictures and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtransfer.data.rows import Rows, columns_of, load_rows
from mmtransfer.evaluation.evaluate import RESULTS, Options, evaluate, writable
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest
from mmtransfer.temperature import Temperature

RUN_FILES = ("metrics.json", "run.json")


def evaluate_saved(
    model: str,
    data: str,
    output: Path,
    split: str = "test",
    calibrate_on: str = "validation",
    outliers: str | None = None,
    save_temperature: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """`evaluate` for a saved model; curves come from the `metrics.json` beside its directory.

    options: those of `Options`
    Raises `FileExistsError` where an evaluation lies, unless it may be replaced.
    """
    if (output / RESULTS).exists() and not overwrite:
        raise FileExistsError(
            f"{output} already holds an evaluation: choose another directory, or --overwrite"
        )
    if save_temperature and not Path(model).is_dir():
        raise ValueError(f"a temperature is saved beside a model in a directory, found {model!r}")
    loaded = TransferModel.from_pretrained(model)
    splits = load_rows(data)
    if split not in splits:
        raise ValueError(f"{data} has no split {split!r}.{nearest(split, splits)}")
    if save_temperature and calibrate_on not in splits:
        raise ValueError(
            f"temperatures are fitted on a split, and {data} has no {calibrate_on!r}."
            f"{nearest(calibrate_on, splits)}"
        )
    strange = load_rows(outliers) if outliers else {}
    if outliers and split not in strange:
        raise ValueError(f"{outliers} has no split {split!r}.{nearest(split, strange)}")
    held = splits.get(calibrate_on) if calibrate_on != split else None
    if held is None and save_temperature:
        raise ValueError(f"temperatures cannot be fitted on {split!r}, which is judged")
    results = evaluate(
        loaded,
        splits[split],
        calibrate_on=held,
        outliers=inputs_of(strange[split], loaded) if outliers else None,
        run=read_metrics(Path(model)),
        output=output,
        options=Options(**options),
        about={
            "model": place(model),
            "data": place(data),
            "split": split,
            "calibrate_on": None if held is None else calibrate_on,
            "outliers": place(outliers) if outliers else None,
        },
    )
    if save_temperature:
        Temperature(results["temperature"]).save(Path(model))
    return results


def default_output(model: str) -> Path:
    """`evaluation` in the run that made a model, where `report` looks; else here."""
    run = Path(model).absolute().parent
    if Path(model).is_dir() and any((run / name).is_file() for name in RUN_FILES):
        return run / "evaluation"
    return Path("evaluation")


def place(name: str) -> str:
    """The whole path of a directory or file, a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def inputs_of(rows: Rows, model: TransferModel) -> list[dict[str, Any]]:
    """The same rows without labels, which outliers need not have."""
    names = [name for name in columns_of(rows) if name in model.encoders]
    return [{name: row.get(name) for name in names} for row in rows]


def read_metrics(model: Path) -> dict[str, Any] | None:
    """What the run that made a model said, where the model still lies in its directory."""
    path = model.absolute().parent / "metrics.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that most ask for, by task."""
    found: dict[str, Any] = {"rows": results["rows"], "tasks": {}}
    for name, task in results["tasks"].items():
        short: dict[str, Any] = {"labelled": task["labelled"], "metrics": task["metrics"]}
        if "classes" in task:
            short |= {
                "intervals": task["intervals"],
                "without_rows": task["without_rows"],
                "ece": {stage: c["ece"] for stage, c in task["calibration"].items()},
                "temperature": results["temperature"].get(name),
                "aurc": task["selective"]["aurc"],
                "contributions": task["contributions"]["accuracy"],
                "outliers": task.get("outliers", {}),
            }
        found["tasks"][name] = short
    told: dict[str, Any] = writable(found | {"robustness": results["robustness"]["subsets"]})
    return told


def print_summary(results: Mapping[str, Any]) -> None:
    console = Console(emoji=False)
    for name, task in results["tasks"].items():
        table = Table(
            title=f"{escape(name)}: {task['labelled']} labelled of {results['rows']} rows",
            title_justify="left",
        )
        table.add_column("metric")
        table.add_column("value", justify="right")
        table.add_column("95 % interval", justify="right")
        intervals = task.get("intervals", {})
        for metric, value in task["metrics"].items():
            bounds = intervals.get(metric)
            shown = f"{bounds['low']:.4f} to {bounds['high']:.4f}" if bounds else ""
            table.add_row(metric, f"{value:.4f}", shown)
        for stage, numbers in task.get("calibration", {}).items():
            table.add_row(f"ECE {stage} scaling", f"{numbers['ece']:.4f}", "")
        if "selective" in task:
            table.add_row("AURC", f"{task['selective']['aurc']:.4f}", "")
        if "contributions" in task:
            for modality, share in task["contributions"]["accuracy"]["of_modalities"].items():
                bounds = f"{share['low']:.4f} to {share['high']:.4f}"
                table.add_row(
                    f"contribution of {escape(modality)}", f"{share['value']:.4f}", bounds
                )
        console.print(table)
        if task.get("without_rows"):
            classes = ", ".join(map(str, task["without_rows"]))
            console.print(
                f"classes without rows, left out: {classes}", highlight=False, markup=False
            )
