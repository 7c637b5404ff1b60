"""The fusion benchmark: every fusion, tuned alike, over several seeds, on the same features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmtransfer.benchmark.cells import Cell, run_cell
from mmtransfer.benchmark.ensemble import Recipe
from mmtransfer.benchmark.running import run_cells
from mmtransfer.encoders.base import parse_spec
from mmtransfer.evaluation.charts import mean
from mmtransfer.registry import check_options, fusions

#: members of a family, where its options choose between published methods
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bilinear": {"bilinear (MLB)": {}, "bilinear (MFB)": {"factors": 5}},
    "late": {f"late ({r})": {"rule": r} for r in ("mean", "weighted", "product", "stacking")},
}
BASELINE = "concat"


@dataclass(frozen=True)
class Plan:
    """What is compared and how each is trained.

    members: specification of each fusion by its label
    rates: each fusion is trained at each of them, with `tuning_seeds` seeds; validation decides
    pooled, tokens: recipes of fusions on pooled vectors and on tokens
    """

    members: dict[str, dict[str, Any]]
    tasks: dict[str, Any]
    modalities: tuple[str, ...]
    features: Path
    mark: str
    width: int = 256
    token_width: int = 128
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: int = 5
    tuning_seeds: int = 1
    pooled: Recipe = field(default_factory=Recipe)
    tokens: Recipe = field(default_factory=lambda: Recipe(epochs=10))

    def on_tokens(self, member: str) -> bool:
        return bool(getattr(fusions.get(self.members[member]["name"]), "uses_tokens", False))

    def cells(
        self,
        member: str,
        lr: float,
        seeds: Sequence[int],
        modalities: tuple[str, ...] | None = None,
        tuning: bool = False,
        robust: bool = True,
    ) -> list[Cell]:
        """On a GPU one cell with all seeds, else one each."""
        spec, on_tokens = self.members[member], self.on_tokens(member)
        recipe = self.tokens if on_tokens else self.pooled
        width = self.token_width if on_tokens else self.width
        groups = [tuple(seeds)] if torch.cuda.is_available() else [(seed,) for seed in seeds]
        return [
            Cell(
                member,
                spec,
                width,
                replace(recipe, lr=lr),
                group,
                modalities or self.modalities,
                self.tasks,
                str(self.features),
                self.mark,
                tuning,
                robust,
            )
            for group in groups
        ]


def members_of(chosen: Sequence[str] | None = None, **options: Any) -> dict[str, dict[str, Any]]:
    """Specifications of the chosen fusions, by default of all registered ones, by label.

    chosen: names, perhaps with options of their own: `bottleneck?bottlenecks=8`
    Raises `ValueError` for an unknown name or option, with the nearest valid one.
    """
    found: dict[str, dict[str, Any]] = {}
    for spec in chosen or fusions.names():
        name, _, given = parse_spec(spec)
        check_options(fusions.get(name), given, f"fusion {name!r}")
        variants = {spec: given} if given else VARIANTS.get(name, {name: {}})
        for label, own in variants.items():
            found[label] = {"name": name, **options, **own}
    return found


def compare(plan: Plan, output: Path, jobs: int = 0) -> dict[str, Any]:
    """Tune, train and score every member; -> results by label, the best, failures.

    By validation the best on pooled vectors and decisions and the best on tokens, and the baseline,
    are also trained without each of the modalities.  What is done is kept in `output`, and a run
    that was broken off goes on from there.

    jobs: processes, by default one per core
    """
    jobs = jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    on_gpu = jobs < 2 and torch.cuda.is_available()
    run = partial(run_cell, device="cuda" if on_gpu else "cpu")
    failures: dict[str, str] = {}
    main = next(iter(plan.tasks))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:

        def results(title: str, cells: list[Cell]) -> dict[str, list[dict[str, Any]]]:
            """By key of the cells that did not fail."""
            bar = progress.add_task(title, total=len(cells))

            def tell(cell: Cell, failure: str | None) -> None:
                progress.advance(bar)
                if failure is not None:
                    failures[cell.member] = failure
                    progress.console.print(f"[red]{cell.member} failed[/red]: {failure}")

            found = run_cells(cells, run, output / "cells", jobs, tell)
            return {cell.key: result for cell, result in found}

        tuning = {
            member: {
                rate: plan.cells(member, rate, range(plan.tuning_seeds), tuning=True)
                for rate in plan.rates
            }
            for member in plan.members
        }
        found = results(
            "tuning", [c for rates in tuning.values() for cs in rates.values() for c in cs]
        )
        rates = {}
        for member, tried in tuning.items():
            scored = {
                rate: mean([r["validation"][main] for c in cells for r in found[c.key]])
                for rate, cells in tried.items()
                if all(c.key in found for c in cells)
            }
            if scored:
                rates[member] = max(scored, key=scored.__getitem__)
        final = {m: plan.cells(m, rate, range(plan.seeds)) for m, rate in rates.items()}
        found = results("training", [c for cells in final.values() for c in cells])
        members = gathered(final, found)
        kinds: dict[bool, list[str]] = {}
        for member in members:
            kinds.setdefault(plan.on_tokens(member), []).append(member)
        judged = {m: mean([r["validation"][main] for r in members[m]]) for m in members}
        of_kinds = [max(found, key=judged.__getitem__) for found in kinds.values()]
        best = max(of_kinds, key=judged.__getitem__)
        fewer = {
            (member, kept): plan.cells(member, rates[member], range(plan.seeds), kept, robust=False)
            for member in dict.fromkeys([best, *of_kinds, BASELINE])
            if member in members
            for kept in combinations(plan.modalities, len(plan.modalities) - 1)
            if kept
        }
        found = results("fewer modalities", [c for cells in fewer.values() for c in cells])
    trained: dict[str, dict[str, Any]] = {}
    for (member, kept), runs in gathered(fewer, found).items():
        trained.setdefault(member, {})[" + ".join(kept)] = runs
    return {
        "task": main,
        "best": best,
        "rates": rates,
        "members": members,
        "trained without": trained,
        "failures": failures,
    }


def gathered(
    cells: Mapping[Any, list[Cell]], found: Mapping[str, list[dict[str, Any]]]
) -> dict[Any, list[dict[str, Any]]]:
    """The results of each group of cells none of which failed, by seed."""
    return {
        name: [result for cell in group for result in found[cell.key]]
        for name, group in cells.items()
        if all(cell.key in found for cell in group)
    }
