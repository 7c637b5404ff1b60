"""Few labels: 4 and 16 photos of each of 81 products, by every strategy and penalty.

Photos alone, and photos with label text and speech, whose encoders stay frozen.  Photos are 64
pixels wide and not augmented, so that what lies below frozen stages is computed once.  The rows
that are labelled, the new layers and the order change with the seed.  Every member has the same
number of epochs but for training from scratch, which has three times as many, and where the name
says so; those that begin with a probe have probe epochs on top, which cost next to nothing.  Rates
and weights were chosen on validation rows, of as many values for each member, with 4 labels per
product and one seed that counts no more (see `members.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtransfer import Trainer
from mmtransfer.methods.wise_ft import WiSEFT
from mmtransfer.training.recipe import untrained
from mmtransfer.transfer.feature_based import FeatureBased
from mmtransfer.transfer.soups import alpha_curve
from transferring.cells import Cell, Figures
from transferring.members import MEMBERS, TWICE, variants
from transferring.report import Summary, better
from transferring.training import (
    accuracy,
    fit,
    given_encoders,
    photo_encoder,
    retail,
    strategy_of,
    training_options,
)

BASELINES = dict.fromkeys(("accuracy", "shifted"), "full")
#: limits: members that beat the baseline, and its gain over training from scratch
LEAST_BETTER, PRETRAINED = 4, 0.2
PHOTO = {"image": "photo"}
ALL = {**PHOTO, "text": "text", "audio": "audio"}
FEATURES = {"photo": "photo_features"}  # of the columns that hold photos
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: momentum of batch norm that trains from scratch; that of the model keeps the last batch alone
MOMENTUM = 0.1
SOME = ("full", "linear_probe", "lp_ft", "wise_ft", "features, logistic", "features, svm")
#: by table: labelled photos per product, epochs, columns, members
SETTINGS: dict[str, tuple[int, int, dict[str, str], tuple[str, ...]]] = {
    "image, 4 labels": (4, 6, PHOTO, tuple(MEMBERS)),
    "image, 16 labels": (16, 3, PHOTO, ("from scratch", TWICE, *SOME)),
    "image + text + audio, 4 labels": (4, 6, ALL, SOME),
    "image + text + audio, 16 labels": (16, 3, ALL, ("full", "linear_probe", "lp_ft")),
}
PROBE_EPOCHS, LAST_OF = 40, 3  # of linear_probe; of gradual_unfreezing's epochs in the last phase


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """All members with all seeds, or the values to be tried.

    tested: rows of the test split; shorter: divides all epochs
    """
    found = []
    for setting, (per_class, epochs, inputs, members) in SETTINGS.items():
        common = {"per_class": per_class, "inputs": inputs, "tested": tested}
        common["epochs"] = max(1, round(epochs / shorter))
        common["probe_epochs"] = max(1, round(PROBE_EPOCHS / shorter))
        for seed in seeds:
            for name in members:
                spec = MEMBERS[name] | common
                for label, tried in variants(name, spec) if tune else ((name, spec),):
                    judged = "validation" if tune else "test"
                    found.append(Cell("few_labels", setting, label, seed, tried, judged))
        if tune:
            break
    return found


def scheduled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A member's strategy with its epochs."""
    asked, probing = dict(spec["strategy"]), spec["probe_epochs"]
    epochs = spec["epochs"] * spec.get("longer", 1)
    if asked["name"] == "linear_probe":
        asked["epochs"] = probing
    elif asked["name"] == "gradual_unfreezing":
        asked["steps"] = LAST_OF
        asked["epochs"] = max(1, epochs // (2 * LAST_OF))
        asked["last_epochs"] = max(1, epochs - (LAST_OF - 1) * asked["epochs"])
    else:
        asked["epochs"] = epochs
    if asked["name"] in ("lp_ft", "wise_ft"):
        asked["probe_epochs"] = max(1, probing // 2)
    return {**spec, "strategy": asked}


def run(cell: Cell, work: Path) -> Figures:
    """Accuracy on test rows and, of photos alone, on corrupted ones; WiSE-FT also by alpha."""
    data, spec = retail(work), cell.spec
    numbers = data.few(spec["per_class"], cell.seed)
    judged = data.some(cell.judged, spec["tested"])
    if "head" in spec:
        return classical(cell, work, numbers, judged)
    inputs = spec["inputs"]
    train = data.rows("train", inputs, numbers, ["product"])
    tests = {"accuracy": data.rows(cell.judged, inputs, judged, ["product"])}
    if inputs == PHOTO and cell.judged == "test":
        tests["shifted"] = data.rows("test", {"image": "shifted"}, judged, ["product"])
    image = photo_encoder()
    if spec.get("scratch"):
        image = untrained(image, cell.seed)
        image.collate = photo_encoder().collate
        for module in image.modules():
            if hasattr(module, "momentum"):
                module.momentum = MOMENTUM
    encoders = {"image": image} | given_encoders(data, inputs)
    strategy = strategy_of(scheduled(spec), "image", tuple(encoders))
    curves = spec["strategy"]["name"] == "wise_ft" and "shifted" in tests
    trainer = fit(encoders, train, strategy, training_options(work, cell.seed))
    try:
        if curves:
            return along(trainer, tests)
        return {name: accuracy(trainer, rows) for name, rows in tests.items()}
    finally:
        trainer.close()


def along(trainer: Trainer, tests: Mapping[str, Any]) -> Figures:
    """Accuracies half way between start and end, and by alpha."""
    (method,) = (m for m in trainer.strategy.methods if isinstance(m, WiSEFT))
    curve = alpha_curve(
        trainer.model,
        method,
        lambda _: {name: accuracy(trainer, rows) for name, rows in tests.items()},
        ALPHAS,
    )
    return curve[0.5] | {"curve": {str(alpha): found for alpha, found in curve.items()}}


def classical(cell: Cell, work: Path, numbers: np.ndarray, judged: np.ndarray) -> Figures:
    """Accuracy of a classical head on pooled features."""
    data, spec = retail(work), cell.spec
    columns = [FEATURES.get(name, name) for name in spec["inputs"].values()]

    def vectors(split: str, rows: Any = slice(None), photo: str = "photo") -> np.ndarray:
        names = [name.replace("photo", photo) for name in columns]
        return np.concatenate([data.array(split, name)[rows] for name in names], 1)

    labels = {split: np.asarray(data.array(split, "product")) for split in ("train", cell.judged)}
    mapped = spec["mapping"] != "none"
    found = FeatureBased(
        mapping=spec["mapping"],
        components=spec["components"] if mapped else None,
        fitted_on="source" if mapped else "target",
        head=spec["head"],
        head_options=spec["options"],
        seed=cell.seed,
    )
    unlabelled = [None] * data.size("train")
    source = {"source": vectors("train"), "source_labels": unlabelled} if mapped else {}
    found.fit(vectors("train", numbers), labels["train"][numbers], **source)
    figures = {"accuracy": found.score(vectors(cell.judged, judged), labels[cell.judged][judged])}
    if spec["inputs"] == PHOTO and cell.judged == "test":
        shifted = vectors("test", judged, "shifted")
        figures["shifted"] = found.score(shifted, labels["test"][judged])
    return figures


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """A line for each figure that misses its limit; in one table enough must beat the baseline."""
    found = {setting: better(members, "accuracy") for setting, members in summary.items()}
    lines = []
    if max(map(len, found.values())) < LEAST_BETTER:
        told = "; ".join(f"{s}: {', '.join(names) or 'nothing'}" for s, names in found.items())
        lines.append(f"fewer than {LEAST_BETTER} beat full fine-tuning: {told}")
    setting, members = next(iter(summary.items()))
    gap = members["full"]["accuracy"]["mean"] - members["from scratch"]["accuracy"]["mean"]
    if gap < PRETRAINED:
        lines.append(f"{setting}: pretraining gains {100 * gap:.1f} points, expected 20")
    return lines
