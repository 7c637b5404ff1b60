"""A domain shift: labelled photos of retail products, unlabelled ones by a bad camera.

Clean to corrupted: half of the training photos, another half for each seed, are the source; of the
other half the corrupted photos are the unlabelled target, and so are the test photos.  Frozen
features of MobileNetV2 are computed once, and a new layer and the head are trained; alignment acts
on what that layer gives.  AdaBN acts below it: features are encoded with batch norm that has the
statistics of all training photos, clean for the source, corrupted for the target.

Biased to whole: the labelled half is drawn by how a photo looks (the first principal component of
its features within its product), so that rows at one end are rare in it; the unlabelled target is
all training photos, judged are clean test photos.  It is what weights of rows are for.

Nothing but labels of the target tells which option is best.  All methods were tuned alike, of as
many values, on the 296 corrupted photos of the validation split with their labels (`GRID`), which
few would have in earnest; plain training chose its rate by them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from mmtransfer import Phase, Strategy
from mmtransfer.methods.base import build_method
from transferring.cells import Cell, Figures
from transferring.report import Summary, better
from transferring.retail import Retail
from transferring.training import accuracy, fit, given_encoders, retail, training_options

BASELINE = "source only"
BASELINES = dict.fromkeys(("accuracy", "source"), BASELINE)
LEAST_BETTER = 3
SETTING, BIASED = "clean to corrupted", "biased to whole"
LR, PLAIN_LR, EPOCHS, BATCH = 2e-3, 1e-3, 20, 64
#: as `--tune` found them
MEMBERS: dict[str, list[dict[str, Any]]] = {
    BASELINE: [],
    "mmd": [{"name": "mmd", "weight": 1.0}],
    "coral": [{"name": "coral", "weight": 1e3}],
    "dann": [{"name": "dann", "weight": 0.1}],
    "cdan": [{"name": "cdan", "weight": 0.03}],
    "self_training": [{"name": "self_training", "threshold": 0.9}],
    "importance_weights": [{"name": "importance_weights", "strength": 1e-4}],
    "kmm": [{"name": "kmm", "bound": 1.5}],
    "adabn": [],
    "mmd + self_training": [{"name": "mmd"}, {"name": "self_training", "threshold": 0.7}],
    "adabn + mmd": [{"name": "mmd", "weight": 0.3}],
}
#: of the second table
WEIGHTING: dict[str, list[dict[str, Any]]] = {
    BASELINE: [],
    "importance_weights": [{"name": "importance_weights", "strength": 0.01}],
    "kmm": [{"name": "kmm", "bound": 3.0}],
    "mmd": [{"name": "mmd", "weight": 1.0}],
}
TABLES = {SETTING: MEMBERS, BIASED: WEIGHTING}
STEEPNESS = 2.0  # of the chance to be drawn, over a standard deviation of that component
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
    epochs, found = max(1, round(EPOCHS / shorter)), []
    named = [(s, name, methods) for s, of in TABLES.items() for name, methods in of.items()]
    for seed, (setting, name, methods) in product(seeds, named):
        spec = {"epochs": epochs, "methods": methods, "biased": setting == BIASED}
        adapted = setting == SETTING and name.startswith("adabn")
        lr = LR if methods or adapted or setting != SETTING else PLAIN_LR
        spec = {"adabn": adapted, "lr": lr} | spec
        if not tune:
            found.append(Cell("shift", setting, name, seed, spec))
            continue
        option, values = GRID.get(name, ("lr", RATES))
        for value in values:
            tried = spec | {option: value}
            if name in GRID:
                tried = spec | {"methods": [*methods[:-1], methods[-1] | {option: value}]}
            label = f"{name} {option}={value:g}"
            found.append(Cell("shift", setting, label, seed, tried, "validation"))
    return found


def drawn(data: Retail, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the labelled rows, drawn with a bias, and of all rows."""
    features = np.array(data.array("train", "photo_features"))
    labels = np.asarray(data.array("train", "product"))
    for label in np.unique(labels):
        features[labels == label] -= features[labels == label].mean(0)
    first = PCA(1, random_state=0).fit_transform(features)[:, 0]
    chances = 1 / (1 + np.exp(-STEEPNESS * first / first.std()))
    rng, size = np.random.default_rng(seed), len(labels)
    chosen = rng.choice(size, size // 2, replace=False, p=chances / chances.sum())
    return chosen, np.arange(size)


def run(cell: Cell, work: Path) -> Figures:
    """Accuracy on photos of the target and, where that is another, of the source."""
    data, spec = retail(work), cell.spec
    kind = "_adabn" if spec["adabn"] else ""
    clean, bad = ({"image": f"{name}_features{kind}"} for name in ("photo", "shifted"))
    if spec["biased"]:
        labelled, unlabelled, bad = *drawn(data, cell.seed), clean
    else:
        order = np.random.default_rng(cell.seed).permutation(data.size("train"))
        labelled, unlabelled = np.array_split(order, 2)
    source = data.rows("train", clean, labelled, ["product"])
    target = data.rows("train", bad, unlabelled, [])
    judged = np.arange(data.size(cell.judged))
    methods = [build_method(method) for method in spec["methods"]]
    trainer = fit(
        given_encoders(data, clean),
        source,
        Strategy([Phase(spec["epochs"], spec["lr"])], methods),
        training_options(work, cell.seed, batch_size=BATCH),
        further={"unlabelled": target},
    )
    try:
        kinds = {"accuracy": bad} if spec["biased"] else {"accuracy": bad, "source": clean}
        tests = {k: data.rows(cell.judged, kinds[k], judged, ["product"]) for k in kinds}
        return {kind: accuracy(trainer, rows) for kind, rows in tests.items()}
    finally:
        trainer.close()


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """A line where too few methods beat source only."""
    found = better(summary[SETTING], "accuracy")
    if len(found) >= LEAST_BETTER:
        return []
    return [f"only {', '.join(found) or 'nothing'} beat source only, expected {LEAST_BETTER}"]
