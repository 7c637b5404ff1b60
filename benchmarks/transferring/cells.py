"""Cells of the benchmark of transfer: a member of a comparison, trained with one seed."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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


def run_cell(cell: Cell, work: Path) -> Figures:
    started, cpu = time.perf_counter(), time.process_time()
    part = importlib.import_module(f"transferring.{cell.part}")
    figures: Figures = part.run(cell, work)
    seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    return figures | seconds
