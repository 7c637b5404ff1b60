"""Several tasks: product and category by themselves and together, and ways to train both.

8 labelled rows per product, frozen features of photo, label text and speech.  `together` is hard
sharing with the plain sum of both losses; the other members change one thing about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtransfer import Phase, Strategy
from mmtransfer.evaluation.affinity import Affinity
from mmtransfer.methods.base import build_method
from transferring.cells import Cell, Figures
from transferring.report import Summary
from transferring.retail import TARGETS
from transferring.training import accuracy, fit, given_encoders, retail, training_options

BASELINES = {task: f"{task} alone" for task in TARGETS}
SETTING = "product and category"
INPUTS = {"image": "photo_features", "text": "text", "audio": "audio"}
PER_CLASS, EPOCHS, LR = 8, 20, 2e-3
MEMBERS: dict[str, dict[str, Any]] = {
    **{f"{task} alone": {"tasks": [task]} for task in TARGETS},
    "together": {},
    "uncertainty": {"methods": ["uncertainty"]},
    "gradnorm": {"methods": ["gradnorm"]},
    "pcgrad": {"methods": ["pcgrad"]},
    "cross_stitch": {"fusion": "cross_stitch"},
}


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """All members with all seeds; there is nothing to be tuned."""
    common = {"epochs": max(1, round(EPOCHS / shorter))}
    return [
        Cell("tasks", SETTING, name, seed, member | common)
        for seed in ([] if tune else seeds)
        for name, member in MEMBERS.items()
    ]


def run(cell: Cell, work: Path) -> Figures:
    """Accuracy of each task."""
    data, spec = retail(work), cell.spec
    names = spec.get("tasks", TARGETS)
    train = data.rows("train", INPUTS, data.few(PER_CLASS, cell.seed), names)
    rows = data.rows(cell.judged, INPUTS, range(data.size(cell.judged)), names)
    methods = [build_method(name) for name in spec.get("methods", ())]
    trainer = fit(
        given_encoders(data, INPUTS),
        train,
        Strategy([Phase(spec["epochs"], LR)], methods),
        training_options(work, cell.seed),
        dict.fromkeys(names, "classification"),
        fusion=spec.get("fusion", "concat"),
    )
    try:
        return {name: accuracy(trainer, rows, name) for name in names}
    finally:
        trainer.close()


def more(results: Sequence[tuple[Cell, Figures]]) -> dict[str, Any]:
    """Which task helps which, printed and for JSON."""
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for cell, figures in sorted(results, key=lambda result: result[0].seed):
        group = tuple(cell.spec.get("tasks", TARGETS))
        if cell.member == "together" or len(group) == 1:
            for task in group:
                groups.setdefault(group, {}).setdefault(task, []).append(figures[task])
    found = Affinity(TARGETS, groups)
    found.print()
    return found.as_dict()


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """Nothing is asked of this table."""
    return []
