"""Transfer on the retail set: strategies and penalties, domain shift, LoRA, several tasks.

    OMP_NUM_THREADS=1 python benchmarks/transfer.py
    OMP_NUM_THREADS=1 python benchmarks/transfer.py --part shift
    OMP_NUM_THREADS=1 python benchmarks/transfer.py --part few_labels --tune

Parts, each described in its file in benchmarks/transferring/:

- few_labels: 4 and 16 labelled photos per product, every strategy and penalty
- off_distribution: full fine-tuning, LP-FT and WiSE-FT on corrupted photos; the same models
- shift: labelled clean photos, unlabelled corrupted ones, every method of alignment
- digits: what photos of products cannot show, on digits of MNIST
- adapters: LoRA on BERT for the label texts
- tasks: product and category, alone and together

Means over seeds with 95 % intervals of Student's t; gains over the baseline of each table are in
pairs of equal seed.  Results are in benchmarks/results/transfer/ and in docs/transfer.md; what a
run that was broken off had done is in runs/transfer and is not done again.  Exit code 1 where a
figure misses its limit.

The budget is 7200 CPU seconds, an hour on two cores: 130 for reading and encoding, 3700 for
few_labels (most of it for photos, about 0.5 a step of 32), nothing more for off_distribution, 400
for shift, 950 for digits, 1500 for adapters and 200 for tasks.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from measuring import RESULTS, decide, shared_directory, write_results
from peers import minilm
from transferring.cells import Cell, Figures, run_cell
from transferring.page import PAGE, fill
from transferring.report import Summary, draw, show, summarise
from transferring.retail import MARK, prepare

from mmtransfer.benchmark.running import run_cells
from mmtransfer.cli import command
from mmtransfer.registry import nearest

PARTS = ("few_labels", "off_distribution", "shift", "digits", "adapters", "tasks")
TUNING_SEED = 1000


def report(part: Any, results: list[tuple[Cell, Figures]], settings: Any, output: Path) -> Summary:
    """Print the tables of a part, and leave its JSON and picture."""
    name = part.__name__.rpartition(".")[2]
    summary = summarise(results, part.BASELINES, list(part.MEMBERS))
    if hasattr(part, "further"):
        summary |= part.further(results)
    show(summary)
    output.mkdir(parents=True, exist_ok=True)
    specs: dict[str, dict[str, Any]] = {}
    cells = []
    for cell, figures in results:
        specs.setdefault(cell.setting, {})[cell.member] = cell.spec
        cells.append({"member": cell.member, "setting": cell.setting, "seed": cell.seed} | figures)
    found = {
        "settings": settings,
        "cpu": sum(figures["cpu"] for _, figures in results),
        "summary": summary,
        "more": part.more(results) if hasattr(part, "more") else {},
        "specs": specs,
        "cells": cells,
    }
    write_results(output / f"{name}.json", found)
    if hasattr(part, "draw"):
        part.draw(summary, output / f"{name}.png")
    else:
        draw(summary, next(iter(part.BASELINES)), output / f"{name}.png")
    return summary


def run_all(
    cells: list[Cell], work: Path, jobs: int, failures: list[str]
) -> Iterator[tuple[Cell, Figures]]:
    """Cells with their figures, each in a line as it comes; those that fail go to `failures`."""

    def tell(cell: Cell, failure: str | None) -> None:
        if failure is not None:
            failures.append(
                f"{cell.part}, {cell.setting}: {cell.member}, seed {cell.seed}: {failure}"
            )

    run = partial(run_cell, work=work)
    for cell, figures in run_cells(cells, run, work / "cells", jobs, tell):
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, float))
        told = f"{cell.part}, {cell.setting}: {cell.member}, seed {cell.seed}"
        print(f"{told}  {shown}", flush=True)
        yield cell, figures


def tried(results: list[tuple[Cell, Figures]]) -> None:
    """Print what each value came to, on validation rows."""
    for cell, figures in results:
        told = ", ".join(f"{figures[k]:.3f}" for k in ("accuracy", "source") if k in figures)
        print(f"{told}  {cell.setting}: {cell.member}  (seed {cell.seed})")


def main(
    part: str | None = None,
    seeds: int = 5,
    tested: int = 800,
    shorter: float = 1.0,
    jobs: int = 2,
    only: list[str] | None = None,
    tune: bool = False,
    work: Path = Path("runs/transfer"),
    output: Path = RESULTS / "transfer",
) -> None:
    """Compare ways of transfer on the retail set of $MMTRANSFER_SHARED.

    Args:
        part: "few_labels", "off_distribution", "shift", "digits", "adapters" or "tasks"; all by
            default
        seeds: repetitions of each member
        tested: test rows, always the same
        shorter: divides all epochs, to see that all runs
        jobs: members that train at a time, on one thread each
        only: members to train, by the beginning of their names; all by default
        tune: instead, try the values of each member on validation rows
        work: directory for arrays, features and what is done so far
        output: directory for JSON and pictures
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"unknown part {part!r}.{nearest(part, PARTS)}")
    started = time.perf_counter()
    prepare(shared_directory(), f"hf:{minilm()}", work)
    numbers = range(TUNING_SEED, TUNING_SEED + 1) if tune else range(seeds)
    failures: list[str] = []
    for name in PARTS if part is None else (part,):
        module: Any = importlib.import_module(f"transferring.{name}")
        wanted = module.cells(numbers, tested, shorter, tune)
        wanted = [c for c in wanted if only is None or c.member.startswith(tuple(only))]
        results = list(run_all(wanted, work, jobs, failures))
        if tune:
            tried(results)
        elif results:
            settings = {"seeds": seeds, "tested": tested, "shorter": shorter, "corruption": MARK}
            summary = report(module, results, settings, output)
            if only is None:
                failures += [f"{name}: {line}" for line in module.misses(summary, results)]
    if not tune and output == RESULTS / "transfer":
        PAGE.write_text(fill(PAGE.read_text(), output))
    print(f"{(time.perf_counter() - started) / 60:.0f} minutes, results in {output}")
    decide(failures)


if __name__ == "__main__":
    command(main, "transfer.py")
