"""Cells of a benchmark: one training each, kept in a file of its own, in several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch


class Kept(Protocol):
    """A dataclass whose `key` is a digest of all that its results depend on."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str: ...


C = TypeVar("C", bound=Kept)


def begin_process() -> None:
    """One thread each: processes that share cores with threads of others only wait."""
    torch.set_num_threads(1)


def run_cells(
    cells: Sequence[C],
    run: Callable[[C], Any],
    folder: Path,
    jobs: int,
    tell: Callable[[C, str | None], None] = lambda cell, failure: None,
) -> Iterator[tuple[C, Any]]:
    """Each cell with its results, as they come; those that `folder` has are read, not run.

    A cell that fails is told of, with what went wrong, and stops no other.

    run: gives results that JSON can hold; with several jobs it goes to other processes
    """
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, C] = {}
    for cell in cells:
        other = known.setdefault(cell.key, cell)
        if other != cell:
            raise ValueError(f"{cell} has the key {cell.key} of {other}: say in it what differs")
    left = []
    for cell in cells:
        file = folder / f"{cell.key}.json"
        if file.is_file():
            tell(cell, None)
            yield cell, json.loads(file.read_text())["results"]
        else:
            left.append(cell)
    for cell, outcome in _computed(left, run, jobs):
        if isinstance(outcome, Exception):
            tell(cell, f"{type(outcome).__name__}: {outcome}")
            continue
        file = folder / f"{cell.key}.json"
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps({"cell": asdict(cell), "results": outcome}))
        os.replace(aside, file)
        tell(cell, None)
        yield cell, outcome


def _computed(
    cells: Sequence[C], run: Callable[[C], Any], jobs: int
) -> Iterator[tuple[C, Any | Exception]]:
    if jobs < 2 or len(cells) < 2:
        for cell in cells:
            try:
                yield cell, run(cell)
            except Exception as error:
                yield cell, error
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), begin_process) as pool:
        running = {pool.submit(run, cell): cell for cell in cells}
        for done in as_completed(running):
            failure = done.exception()
            if failure is None:
                yield running[done], done.result()
            elif isinstance(failure, Exception):
                yield running[done], failure
            else:
                raise failure
