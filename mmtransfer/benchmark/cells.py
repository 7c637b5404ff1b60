"""Cells of a benchmark: one training each, kept in a file of its own, in several processes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mmtransfer.benchmark.ensemble import Joined, Recipe, train
from mmtransfer.benchmark.scores import robustness, score
from mmtransfer.data.examples import Examples
from mmtransfer.fusion.base import build_fusion
from mmtransfer.tasks.base import Task


@dataclass(frozen=True)
class Cell:
    """A fusion, trained alike for some seeds.

    member: its label; spec: its name and options; width: of the fused vector
    modalities: that it is trained and tested with
    tuning: scored on validation rows only
    robust: also scored with noise and with fewer modalities
    features: directory of the encoded splits; mark: fingerprint of them
    """

    member: str
    spec: dict[str, Any]
    width: int
    recipe: Recipe
    seeds: tuple[int, ...]
    modalities: tuple[str, ...]
    tasks: dict[str, Any]
    features: str
    mark: str
    tuning: bool = False
    robust: bool = True

    @property
    def key(self) -> str:
        """Name of its file: a digest of all that its numbers depend on."""
        told = {k: v for k, v in asdict(self).items() if k not in ("member", "features")}
        return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def save_split(examples: Examples, features: Path, split: str) -> None:
    """Write an encoded split where cells find it, whole and pooled."""
    features.mkdir(parents=True, exist_ok=True)
    examples.save(features / f"{split}.safetensors")
    examples.pooled().save(features / f"{split}.pooled.safetensors")


@cache
def examples_of(features: str, split: str, pooled: bool) -> Examples:
    """An encoded split, kept by each process that works on it."""
    name = f"{split}.pooled" if pooled else split
    return Examples.load(Path(features) / f"{name}.safetensors")


def run_cell(cell: Cell, device: str = "cpu") -> list[dict[str, Any]]:
    """Train and score; -> one result per seed."""
    tasks = {name: Task.from_config(config) for name, config in cell.tasks.items()}
    features = examples_of(cell.features, "train", True).features
    widths = {name: features[name].width for name in cell.modalities}
    pooled = not build_fusion(cell.spec, widths, cell.width).uses_tokens

    def seen(split: str) -> Examples:
        return examples_of(cell.features, split, pooled).only(cell.modalities)

    started, cpu = time.perf_counter(), time.process_time()
    models = train(
        lambda: Joined(build_fusion(cell.spec, widths, cell.width), tasks),
        seen("train"),
        tasks,
        cell.seeds,
        cell.recipe,
        device,
        together=len(cell.seeds) > 1,
    )
    seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    results = []
    for seed, model in zip(cell.seeds, models, strict=True):
        result: dict[str, Any] = {
            "seed": seed,
            "validation": score(model, seen("validation"), tasks, device),
            "parameters": sum(p.numel() for p in model.parameters()),
            **{name: value / len(models) for name, value in seconds.items()},
        }
        if not cell.tuning:
            tested = seen("test")
            scale = examples_of(cell.features, "train", True).statistics()
            result |= (
                robustness(model, tested, tasks, scale, device)
                if cell.robust
                else {"test": score(model, tested, tasks, device)}
            )
        results.append(result)
    return results


def begin_process() -> None:
    """One thread each: processes that share cores with threads of others only wait."""
    torch.set_num_threads(1)


def run_cells(
    cells: Sequence[Cell],
    output: Path,
    jobs: int,
    tell: Callable[[Cell, str | None], None] = lambda cell, failure: None,
) -> Iterator[tuple[Cell, list[dict[str, Any]]]]:
    """Each cell with its results, as they come; those that `output` has are read, not run.

    A cell that fails is told of, with what went wrong, and stops no other.
    """
    output.mkdir(parents=True, exist_ok=True)
    left = []
    for cell in cells:
        file = output / f"{cell.key}.json"
        if file.is_file():
            tell(cell, None)
            yield cell, json.loads(file.read_text())["results"]
        else:
            left.append(cell)
    for cell, outcome in _computed(left, jobs):
        if isinstance(outcome, Exception):
            tell(cell, f"{type(outcome).__name__}: {outcome}")
            continue
        file = output / f"{cell.key}.json"
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps({"cell": asdict(cell), "results": outcome}))
        os.replace(aside, file)
        tell(cell, None)
        yield cell, outcome


def _computed(
    cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, list[dict[str, Any]] | Exception]]:
    if jobs < 2 or len(cells) < 2:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for cell in cells:
            try:
                yield cell, run_cell(cell, device)
            except Exception as error:
                yield cell, error
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), begin_process) as pool:
        running = {pool.submit(run_cell, cell): cell for cell in cells}
        for done in as_completed(running):
            failure = done.exception()
            if failure is None:
                yield running[done], done.result()
            elif isinstance(failure, Exception):
                yield running[done], failure
            else:
                raise failure
