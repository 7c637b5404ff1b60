"""Provenance: `run.json` says how a run was started, on what, with which code and data."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mmtransfer.data.parquet import ParquetRows
from mmtransfer.data.rows import Rows, columns_of, fingerprint_column
from mmtransfer.data.stream import as_stream, is_stream
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.processes import machines
from mmtransfer.training.surroundings import (
    git_state,
    hardware,
    launch_settings,
    versions,
    without_secrets,
)

RECORD = "run.json"
LARGE = 2**30  # bytes from which on reading all data for its digest takes too long


def write_record(
    output: Path,
    data: Mapping[str, Mapping[str, Any]],
    options: TrainingOptions,
    resume: bool = False,
) -> None:
    """Write `run.json`, from the main process; all processes call it and say where they are.

    data: its `fingerprints`
    resume: keep the records of the earlier starts of this run, as `before`
    """
    started = machines()
    state = PartialState()
    if not state.is_main_process:
        return
    script = script_path()
    processes = sum(machine["processes"] for machine in started)
    record: dict[str, Any] = {
        "script": str(script) if script else None,
        "arguments": sys.argv[1:],
        "directory": os.getcwd(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": options.seed,
        "batch": {
            "rows_per_step": options.batch_size,
            "rows_per_process": options.batch_size / options.accumulation / processes,
            "accumulation": options.accumulation,
            "processes": processes,
        },
        "machines": started,
        "settings": launch_settings(),
        "versions": versions(),
        "hardware": hardware(),
        "git": git_state(script.parent if script else Path.cwd()),
        "data": data,
    }
    if resume and (output / RECORD).is_file():
        earlier = read_record(output)
        record["before"] = [*earlier.pop("before", []), earlier]
    (output / RECORD).write_text(json.dumps(without_secrets(record), indent=2) + "\n")


def read_record(output: Path) -> dict[str, Any]:
    """The record of a run.  Raises `FileNotFoundError` or `ValueError` where there is none."""
    path = output / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{output} holds no {RECORD}: expected the output directory of a run"
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no readable JSON: {error}") from error
    return record


def script_path() -> Path | None:
    """The script that Python was started with; None for a notebook, `python -c` and the like."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def fingerprints(data: Mapping[str, Rows], columns: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Per split, its number of rows and a digest of each column; all processes ask together.

    Of parquet files beyond `LARGE` the digest is of their footers, and a stream has only a length
    and names of columns.
    """
    found = [_fingerprints(data, columns) if PartialState().is_main_process else {}]
    broadcast_object_list(found)
    return found[0]


def _fingerprints(data: Mapping[str, Rows], columns: Iterable[str]) -> dict[str, dict[str, Any]]:
    names = list(columns)
    found: dict[str, dict[str, Any]] = {}
    for split, rows in data.items():
        if is_stream(rows):
            stream = as_stream(rows)
            found[split] = {"rows": stream.length, "columns": stream.column_names}
        elif isinstance(rows, ParquetRows) and rows.size > LARGE:
            found[split] = {"rows": len(rows), "footers": rows.outline()}
        else:
            there = set(columns_of(rows))  # rows need not have labels for every task
            digests = {name: fingerprint_column(rows, name) for name in names if name in there}
            found[split] = {"rows": len(rows)} | digests
    return found
