"""Repeat a run from what it left behind, and say whether the same came out."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from mmtransfer.training.record import RECORD, read_record
from mmtransfer.training.run import check_output
from mmtransfer.training.surroundings import SETTINGS

WEIGHTS = Path("model") / "model.safetensors"
RESULTS = ("validation", "test", "single", "table", "history", "steps", "unreadable")
TIMES = ("seconds", "timing")  # of no two runs the same


@dataclass
class Finding:
    """One thing that was compared.

    same: bit-equal
    result: decides whether the run was repeated; versions and code only explain a difference
    """

    name: str
    same: bool
    detail: str
    result: bool = True


def rerun(run: Path, output: Path | None = None) -> list[Finding]:
    """Repeat the run of a directory in a new one, by default `RUN-rerun`, and compare the two.

    The recorded script runs in the recorded directory on as many processes, with the `config.yaml`
    of the run and the recorded settings of its launcher.  Stored features are read as in any run.

    Raises:
        FileNotFoundError: no record, no result, no script or no working directory
        FileExistsError: the new directory holds a run
        ValueError: a run that no script can repeat, or of several machines
        ChildProcessError: the repeated run failed
    """
    run = run.resolve()
    record = read_record(run)
    again = (output or run.with_name(f"{run.name}-rerun")).resolve()
    if again == run:
        raise ValueError(f"{run} cannot be repeated into itself: name another directory")
    if not (run / "metrics.json").is_file():
        raise FileNotFoundError(f"{run} holds no metrics.json: the run did not finish")
    command = rerun_command(run, record, again)
    check_output(again, overwrite=False)
    kept = {n: v for n, v in os.environ.items() if not SETTINGS.fullmatch(n)}
    print(shlex.join(command), file=sys.stderr)
    # What the run prints is not what this prints: to standard error.
    done = subprocess.run(command, cwd=record["directory"], env=kept | record["settings"], stdout=2)
    if done.returncode:
        raise ChildProcessError(f"the repeated run ended with exit code {done.returncode}")
    return compare(run, again)


def rerun_command(run: Path, record: Mapping[str, Any], output: Path) -> list[str]:
    """How to start a recorded run again.  Raises an error for what cannot be repeated."""
    if record["script"] is None:
        raise ValueError(
            f"{run} was not started by a script ({RECORD} names none): only scripts are repeated"
        )
    script, directory, config = Path(record["script"]), record["directory"], run / "config.yaml"
    if not script.is_file():
        raise FileNotFoundError(f"the script of the run is gone: {script}")
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"the working directory of the run is gone: {directory}")
    if not config.is_file() or not yaml.safe_load(config.read_text()):
        raise ValueError(
            f"{config} holds no arguments: expected those that the script gave to "
            "`run(..., arguments=...)`"
        )
    if len(record["machines"]) > 1:
        hosts = ", ".join(machine["host"] for machine in record["machines"])
        raise ValueError(
            f"the run was on {len(record['machines'])} machines ({hosts}), expected one: start "
            f"{script.name} --config {config} --output {output} on each by hand"
        )
    processes = record["machines"][0]["processes"]
    command = [sys.executable]
    if processes > 1:
        # What `accelerate launch` starts, too; its own settings are in the environment already.
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes)]
    # `mmtransfer train` is one of several commands of its script; recipes have no such word.
    word = [word for word in record["arguments"][:1] if word == "train"]
    return [*command, str(script), *word, "--config", str(config), "--output", str(output)]


def compare(run: Path, again: Path) -> list[Finding]:
    """Versions, hardware, code, processes, data, metrics and weights of two runs."""
    old, new = read_record(run), read_record(again)
    return [
        _context("versions", old["versions"], new["versions"]),
        _context("hardware", old["hardware"], new["hardware"]),
        _context("code (git)", _code(old), _code(new)),
        _context("processes", _processes(old), _processes(new)),
        _compared("data", old["data"], new["data"]),
        _compared("metrics", _results(run), _results(again)),
        compare_weights(run / WEIGHTS, again / WEIGHTS),
    ]


def compare_weights(old: Path, new: Path) -> Finding:
    """Two safetensors files: bit-equal, or the largest difference and where it is."""
    for path in (old, new):
        if not path.is_file():
            return Finding("weights", False, f"no {path}")
    a, b = load_file(old), load_file(new)
    kinds = [{n: (t.shape, t.dtype) for n, t in tensors.items()} for tensors in (a, b)]
    if kinds[0] != kinds[1]:
        return Finding("weights", False, "other names, shapes or types of tensors")
    changed = [n for n in a if not torch.equal(_bits(a[n]), _bits(b[n]))]
    if not changed:
        return Finding("weights", True, f"{len(a)} tensors bit-equal")
    gaps = {n: float((a[n].double() - b[n].double()).abs().max()) for n in changed}
    worst = max(gaps, key=lambda n: math.inf if math.isnan(gaps[n]) else gaps[n])
    detail = f"{len(changed)} of {len(a)} tensors differ, at most by {gaps[worst]:.3g} ({worst})"
    return Finding("weights", False, detail)


def print_findings(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("", "same", ""):
        table.add_column(title)
    for found in findings:
        table.add_row(found.name, "yes" if found.same else "NO", escape(found.detail))
    Console().print(table)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)  # NaN equals NaN, 0 is not -0


def _code(record: Mapping[str, Any]) -> dict[str, Any]:
    state = record["git"] or {"commit": "no repository"}
    return {name: state.get(name) for name in ("commit", "diff_sha256")}


def _processes(record: Mapping[str, Any]) -> list[list[str]]:
    return [machine["devices"] for machine in record["machines"]]


def _results(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: metrics[name] for name in RESULTS if name in metrics}


def _context(name: str, old: Any, new: Any) -> Finding:
    found = _compared(name, old, new)
    found.result = False
    return found


def _compared(name: str, old: Any, new: Any) -> Finding:
    """Two values out of dictionaries, lists, strings and numbers, leaf by leaf."""
    a, b = dict(_leaves(old)), dict(_leaves(new))
    changed = [leaf for leaf in {**a, **b} if not _same(a.get(leaf), b.get(leaf))]
    if not changed:
        return Finding(name, True, f"{len(a)} values equal")
    first = changed[0]
    detail = f"{len(changed)} of {len(a)} differ: {first} {a.get(first)} -> {b.get(first)}"
    numbers = [
        (abs(a[leaf] - b[leaf]), leaf)
        for leaf in changed
        if isinstance(a.get(leaf), float) and isinstance(b.get(leaf), float)
    ]
    if numbers:
        gap, leaf = max(numbers)
        detail = f"{len(changed)} of {len(a)} differ, at most by {gap:.3g} ({leaf})"
    return Finding(name, False, detail)


def _same(a: Any, b: Any) -> bool:
    return a == b or (a != a and b != b)  # a metric of no rows is NaN in both


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield path, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key not in TIMES:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
