"""Cells: one training each, its figures in a file of its own, in several processes.

A run that was broken off reads the files of what it had done.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from transferring.retail import MARK

#: what a cell came to: accuracies by name, and whatever else it tells
Figures = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A member of a comparison, trained with one seed by `transferring.<part>.run`.

    setting: what all members of a table have in common, by name
    spec: what the member is; with the seed all that its figures depend on
    judged: split that it is judged by
    """

    part: str
    setting: str
    member: str
    seed: int
    spec: dict[str, Any] = field(hash=False)
    judged: str = "test"

    @property
    def key(self) -> str:
        """Name of its file."""
        told = {k: v for k, v in asdict(self).items() if k != "member"} | {"mark": MARK}
        digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8)
        return f"{self.part}-{digest.hexdigest()}"


def begin() -> None:
    """One thread each: processes that share cores with threads of others only wait."""
    torch.set_num_threads(1)


def run_cell(cell: Cell, work: str) -> Figures:
    started, cpu = time.perf_counter(), time.process_time()
    part = importlib.import_module(f"transferring.{cell.part}")
    figures: Figures = part.run(cell, Path(work))
    seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    return figures | seconds


def run_cells(cells: Sequence[Cell], work: Path, jobs: int) -> Iterator[tuple[Cell, Figures]]:
    """Each cell with its figures: first those that `work` has, then the others as they come."""
    folder = work / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    left = []
    for cell in cells:
        file = folder / f"{cell.key}.json"
        if file.is_file():
            yield cell, json.loads(file.read_text())["figures"]
        else:
            left.append(cell)
    for done, (cell, figures) in enumerate(_computed(left, work, jobs), start=1):
        aside = folder / f"{cell.key}.part"
        aside.write_text(json.dumps({"cell": asdict(cell), "figures": figures}))
        os.replace(aside, folder / f"{cell.key}.json")
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, float))
        told = f"{cell.part}, {cell.setting}: {cell.member}, seed {cell.seed}"
        print(f"{done}/{len(left)}  {told}  {shown}", flush=True)
        yield cell, figures


def _computed(cells: Sequence[Cell], work: Path, jobs: int) -> Iterator[tuple[Cell, Figures]]:
    if jobs < 2 or len(cells) < 2:
        for cell in cells:
            yield cell, run_cell(cell, str(work))
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), begin) as pool:
        running = {pool.submit(run_cell, cell, str(work)): cell for cell in cells}
        for done in as_completed(running):
            yield running[done], done.result()
