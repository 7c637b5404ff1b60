"""A domain shift: labelled photos of retail products, unlabelled photos by a bad camera.

Half of the training photos, another half for each seed, are the source; of the other half the
corrupted photos are the unlabelled target, and so are the test photos.  Frozen features of
MobileNetV2 are computed once, and a new layer and the head are trained; alignment acts on what
that layer gives.  AdaBN acts below it: features are encoded with batch norm that has the
statistics of all training photos, clean for the source, corrupted for the target.

Nothing but labels of the target tells which option is best.  All methods were tuned alike, of as
many values, on the 296 corrupted photos of the validation split with their labels (`GRID`), which
few would have in earnest; plain training chose its rate by them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtransfer import Phase, Strategy
from mmtransfer.methods.base import build_method
from transferring.cells import Cell, Figures
from transferring.report import Summary, better
from transferring.training import accuracy, fit, given_encoders, retail, training_options

BASELINE = "source only"
BASELINES = dict.fromkeys(("accuracy", "source"), BASELINE)
LEAST_BETTER = 3
SETTING = "clean to corrupted"
LR, EPOCHS, BATCH = 2e-3, 20, 64
#: as `--tune` found them
MEMBERS: dict[str, list[dict[str, Any]]] = {
    BASELINE: [],
    "mmd": [{"name": "mmd", "weight": 1.0}],
    "coral": [{"name": "coral", "weight": 1e4}],
    "dann": [{"name": "dann", "weight": 0.1}],
    "cdan": [{"name": "cdan", "weight": 0.1}],
    "self_training": [{"name": "self_training", "threshold": 0.7}],
    "importance_weights": [{"name": "importance_weights", "strength": 0.01}],
    "kmm": [{"name": "kmm", "bound": 3.0}],
    "adabn": [],
    "mmd + self_training": [{"name": "mmd"}, {"name": "self_training", "threshold": 0.7}],
    "adabn + mmd": [{"name": "mmd", "weight": 1.0}],
}
#: what `--tune` tries, of the method that is listed last
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    "mmd": ("weight", (0.3, 1.0, 3.0)),
    "coral": ("weight", (1e3, 1e4, 1e5)),
    "dann": ("weight", (0.03, 0.1, 0.3)),
    "cdan": ("weight", (0.03, 0.1, 0.3)),
    "self_training": ("threshold", (0.5, 0.7, 0.9)),
    "importance_weights": ("strength", (1e-4, 1e-3, 1e-2)),
    "kmm": ("bound", (1.5, 3.0, 10.0)),
    "mmd + self_training": ("threshold", (0.5, 0.7, 0.9)),
    "adabn + mmd": ("weight", (0.3, 1.0, 3.0)),
}
RATES = (1e-3, 2e-3, 5e-3)


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """All members with all seeds, or the values to be tried."""
    common = {"tested": tested, "epochs": max(1, round(EPOCHS / shorter)), "lr": LR}
    found = []
    for seed in seeds:
        for name, methods in MEMBERS.items():
            spec = common | {"methods": methods, "adabn": name.startswith("adabn")}
            if not tune:
                found.append(Cell("shift", SETTING, name, seed, spec))
                continue
            option, values = GRID.get(name, ("lr", RATES))
            for value in values:
                tried = spec | {option: value}
                if name in GRID:
                    tried = spec | {"methods": [*methods[:-1], methods[-1] | {option: value}]}
                label = f"{name} {option}={value:g}"
                found.append(Cell("shift", SETTING, label, seed, tried, "validation"))
    return found


def run(cell: Cell, work: Path) -> Figures:
    """Accuracy on the corrupted photos, and on clean ones."""
    data, spec = retail(work), cell.spec
    kind = "_adabn" if spec["adabn"] else ""
    clean, bad = ({"image": f"{name}_features{kind}"} for name in ("photo", "shifted"))
    halves = np.array_split(np.random.default_rng(cell.seed).permutation(data.size("train")), 2)
    source = data.rows("train", clean, halves[0], ["product"])
    target = data.rows("train", bad, halves[1], [])
    judged = data.some(cell.judged, spec["tested"])
    methods = [build_method(method) for method in spec["methods"]]
    strategy = Strategy([Phase(spec["epochs"], spec["lr"])], methods)
    options = training_options(work, cell.seed, batch_size=BATCH)
    trainer = fit(given_encoders(data, clean), source, strategy, options, unlabelled=target)
    try:
        return {
            "accuracy": accuracy(trainer, data.rows(cell.judged, bad, judged, ["product"])),
            "source": accuracy(trainer, data.rows(cell.judged, clean, judged, ["product"])),
        }
    finally:
        trainer.close()


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """A line where too few methods beat source only."""
    found = better(summary[SETTING], "accuracy")
    if len(found) >= LEAST_BETTER:
        return []
    return [f"only {', '.join(found) or 'nothing'} beat source only, expected {LEAST_BETTER}"]
