"""Digits of MNIST and small networks from scratch: what photos of products cannot show.

Clear to hazy: labelled clear digits, unlabelled ones of little contrast, bright and noisy.  It is
what AdaBN is for.

Some labelled, most not: 200 digits with labels and 4000 without.  What pseudo-labels are for.

0 to 4, then 5 to 9: a network that knows the first learns the others; `source` is the accuracy on
the first afterwards.  What EWC and LwF are for, and where few weights are free to forget.

A teacher: 200 digits with labels and 2000 that the teacher alone has seen labels of (4000 when
options were tuned); the student is half as wide.  `plain` has the 200, and as many steps.

Clear, then misty, six times: fine-tuned on 200 digits that are a little hazy, at three rates with
two seeds.  `plain` is the best of the six on 200 others, by which `greedy soup` chooses as well.

Few right, many by another rule: 5 digits of each kind with their labels, 1000 of the source, half
of them with the number after theirs for a label, and 50 principal components of the pixels.  What
TrAdaBoost is for.

Many labels: classical heads on 50 principal components of 4000 digits.

`plain` is the baseline of each table.  Options were chosen on 1000 other digits with `--tune`, of
three values each; those of the third table by the mean of both accuracies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from mmtransfer import TransferModel
from mmtransfer.data.rows import Rows
from mmtransfer.training.run import build_model
from mmtransfer.transfer.feature_based import FeatureBased
from mmtransfer.transfer.soups import greedy_soup, uniform_soup
from transferring.cells import Cell, Figures
from transferring.mnist import SMALL, STUDENT, digits, fit, flat, judged, others, rows
from transferring.report import Summary
from transferring.training import WIDTH, accuracy

PLAIN = "plain"
BASELINES = dict.fromkeys(("accuracy", "source"), PLAIN)
HAZY, PARTLY, SEQUENCE = "clear to hazy", "some labelled, most not", "0 to 4, then 5 to 9"
TEACHER, SOUP = "a teacher", "clear, then misty, six times"
BOOSTED, HEADS = "few right, many by another rule", "many labels"
Member = dict[str, Any]
#: as `--tune` found them
TABLES: dict[str, dict[str, Member]] = {
    HAZY: {
        PLAIN: {},
        "adabn": {"methods": [{"name": "adabn"}]},
        "mmd": {"methods": [{"name": "mmd", "weight": 0.3}]},
        "adabn + mmd": {"methods": [{"name": "adabn"}, {"name": "mmd", "weight": 3.0}]},
    },
    PARTLY: {
        PLAIN: {},
        "self_training": {"methods": [{"name": "self_training", "threshold": 0.9}]},
    },
    SEQUENCE: {
        PLAIN: {},
        "l2_sp": {"methods": [{"name": "l2_sp", "alpha": 0.1, "new": ["heads.high"]}]},
        "ewc": {"methods": [{"name": "ewc", "strength": 30.0}]},
        "lwf": {"methods": [{"name": "lwf", "weight": 2.0}]},
        "delta": {"methods": [{"name": "delta", "weight": 1.0}]},
        "bitfit": {"strategy": {"name": "bitfit", "encoder_lr": 3e-2}},
        "lora": {"strategy": {"name": "lora", "encoder_lr": 1e-3}},
        "dora": {"strategy": {"name": "dora", "encoder_lr": 1e-3}},
        "ia3": {"strategy": {"name": "ia3", "encoder_lr": 1e-2}},
    },
    TEACHER: {
        PLAIN: {},
        "distillation": {"methods": [{"name": "distillation", "share": 0.9}]},
        "fitnet": {"methods": [{"name": "fitnet", "weight": 10.0}]},
        "rkd": {"methods": [{"name": "rkd", "distance": 25.0}]},
    },
    SOUP: {
        PLAIN: {"kept": "best"},
        "uniform soup": {"kept": "uniform"},
        "greedy soup": {"kept": "greedy"},
    },
    BOOSTED: {
        PLAIN: {"head": "logistic", "options": {"C": 0.01}},
        "source and target": {"head": "logistic", "options": {"C": 0.01}, "joint": True},
        "tradaboost": {"head": "tradaboost", "options": {"C": 0.01}, "joint": True},
    },
    HEADS: {
        PLAIN: {"head": "logistic", "options": {"C": 0.1}},
        "ridge": {"head": "linear", "options": {"alpha": 1000.0}},
        "svm": {"head": "svm", "options": {"C": 10.0}},
        "knn": {"head": "knn", "options": {"n_neighbors": 5}},
    },
}
MEMBERS = {name: {} for members in TABLES.values() for name in members}
#: what `--tune` tries, of the method that is listed last or of the head; rates of `plain`
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    "mmd": ("weight", (0.3, 1.0, 3.0)),
    "adabn + mmd": ("weight", (0.3, 1.0, 3.0)),
    "self_training": ("threshold", (0.5, 0.7, 0.9)),
    "l2_sp": ("alpha", (0.01, 0.1, 1.0)),
    "ewc": ("strength", (30.0, 300.0, 3000.0)),
    "lwf": ("weight", (0.5, 2.0, 8.0)),
    "delta": ("weight", (0.1, 1.0, 10.0)),
    "bitfit": ("encoder_lr", (3e-3, 1e-2, 3e-2)),
    "lora": ("encoder_lr", (3e-4, 1e-3, 3e-3)),
    "dora": ("encoder_lr", (3e-4, 1e-3, 3e-3)),
    "ia3": ("encoder_lr", (3e-3, 1e-2, 3e-2)),
    "distillation": ("share", (0.3, 0.6, 0.9)),
    "fitnet": ("weight", (0.1, 1.0, 10.0)),
    "rkd": ("distance", (2.5, 25.0, 250.0)),
    "ridge": ("alpha", (1.0, 100.0, 1000.0)),
    "svm": ("C", (1.0, 10.0, 100.0)),
    "knn": ("n_neighbors", (1, 3, 5)),
}
REGULARISED, RATES = (1e-3, 1e-2, 1e-1), (1e-3, 2e-3, 5e-3)
LR = {HAZY: 2e-3, PARTLY: 5e-3, SEQUENCE: 2e-3, TEACHER: 5e-3, SOUP: 5e-3}
EPOCHS = {HAZY: 10, PARTLY: 60, SEQUENCE: 10, TEACHER: 12, SOUP: 20}
FEW, MANY, TAUGHT, LEARNED = 200, 4000, 2000, 1000  # digits
EACH = 5  # digits of each kind
SIZES = [FEW, MANY, TAUGHT, LEARNED, EACH]
MISTY = 0.3
LONGER = 3  # times that the second half is learned
SOUP_RATES, SOUP_SEEDS = (5e-4, 1e-3, 2e-3), (0, 1)


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """All members with all seeds, or the values to be tried."""
    found = []
    members = [(table, name) for table, of in TABLES.items() for name in of]
    for seed, (table, name) in product(seeds, members):
        spec = TABLES[table][name] | {"sizes": SIZES}
        if table in EPOCHS:
            spec |= {"lr": LR[table], "epochs": max(1, round(EPOCHS[table] / shorter))}
        if not tune:
            found.append(Cell("digits", table, name, seed, spec))
            continue
        for label, tried in variants(name, spec):
            found.append(Cell("digits", table, label, seed, tried, "validation"))
    return found


def variants(name: str, spec: Member) -> Iterable[tuple[str, Member]]:
    if name.endswith("soup"):
        return
    plain = ("C", REGULARISED) if "head" in spec else ("lr", RATES)
    option, values = GRID.get(name, plain)
    for value in values:
        if "head" in spec:
            tried = spec | {"options": {option: value}}
        elif "strategy" in spec:
            tried = spec | {"strategy": spec["strategy"] | {option: value}}
        elif name in GRID:
            *before, last = spec["methods"]
            tried = spec | {"methods": [*before, last | {option: value}]}
        else:
            tried = spec | {option: value}
        yield f"{name} {option}={value:g}", tried


def aligned(cell: Cell, work: Path) -> Figures:
    """Accuracy on hazy digits and, as `source`, on clear ones."""
    order = others(cell.seed)
    unlabelled = rows(order[LEARNED : 2 * LEARNED], 1.0, ())
    trainer = fit(cell, work, rows(order[:LEARNED]), further={"unlabelled": unlabelled})
    try:
        tests = {"accuracy": rows(judged(cell), 1.0), "source": rows(judged(cell))}
        return {kind: accuracy(trainer, found, "digit") for kind, found in tests.items()}
    finally:
        trainer.close()


def pseudo_labelled(cell: Cell, work: Path) -> Figures:
    order = others(cell.seed)
    unlabelled = rows(order[FEW : FEW + MANY], columns=())
    trainer = fit(cell, work, rows(order[:FEW]), further={"unlabelled": unlabelled})
    try:
        return {"accuracy": accuracy(trainer, rows(judged(cell)), "digit")}
    finally:
        trainer.close()


def in_sequence(cell: Cell, work: Path) -> Figures:
    """Accuracy on the digits that were learned last and, as `source`, on the first."""
    labels = digits()[1]
    halves = {"low": range(5), "high": range(5, 10)}

    def of(half: str, numbers: np.ndarray) -> Rows:
        blank = dict.fromkeys(halves)
        return [
            blank | row
            for row in rows(numbers[np.isin(labels[numbers], halves[half])], columns=[half])
        ]

    order = others(cell.seed)
    tasks = {n: {"name": "classification", "classes": list(d)} for n, d in halves.items()}
    first, second = of("low", order[:LEARNED]), of("high", order[:LEARNED])
    model = build_model({"image": SMALL}, tasks, first, width=WIDTH, seed=cell.seed)
    fit(cell, work, first, model, methods=[], strategy={}).close()
    model.encoders["image"].pretrained = True  # its batch norm stays still from now on
    epochs = cell.spec["epochs"] * LONGER
    trainer = fit(cell, work, second, model, {"source": first[:FEW]}, epochs=epochs)
    try:
        kinds = {"accuracy": "high", "source": "low"}
        tests = {kind: of(half, judged(cell)) for kind, half in kinds.items()}
        return {kind: accuracy(trainer, tests[kind], half) for kind, half in kinds.items()}
    finally:
        trainer.close()


def taught(cell: Cell, work: Path) -> Figures:
    order = others(cell.seed)
    labelled, seen = rows(order[:FEW]), order[FEW : FEW + TAUGHT]
    methods = cell.spec.get("methods", [])
    with TemporaryDirectory() as folder:
        if methods:
            teacher = fit(cell, work, rows(seen), methods=[], lr=LR[HAZY], epochs=EPOCHS[HAZY])
            teacher.model.save_pretrained(folder)
            teacher.close()
            train = [*labelled, *({"digit": None} | row for row in rows(seen, columns=()))]
            methods = [method | {"teacher": folder} for method in methods]
            epochs = cell.spec["epochs"]
        else:
            train, epochs = labelled, cell.spec["epochs"] * (FEW + TAUGHT) // FEW
        trainer = fit(cell, work, train, STUDENT, methods=methods, epochs=epochs)
        try:
            return {"accuracy": accuracy(trainer, rows(judged(cell)), "digit")}
        finally:
            trainer.close()


@cache
def ingredients(cell: Cell, work: Path) -> list[TransferModel]:
    """A network that knows clear digits, fine-tuned on misty ones several times."""
    order = others(cell.seed)
    start = fit(cell, work, rows(order[:LEARNED]), methods=[], epochs=EPOCHS[HAZY])
    start.close()
    start.model.encoders["image"].pretrained = True
    train, found = rows(order[LEARNED : LEARNED + FEW], MISTY), []
    for lr, seed in product(SOUP_RATES, SOUP_SEEDS):
        trainer = fit(cell, work, train, deepcopy(start.model), seed=seed, lr=lr)
        trainer.close()
        found.append(trainer.model)
    return found


def souped(cell: Cell, work: Path) -> Figures:
    """Accuracy on hazy digits and, as `source`, on clear ones."""
    shared = {k: v for k, v in cell.spec.items() if k != "kept"}
    models = ingredients(Cell(cell.part, cell.setting, PLAIN, cell.seed, shared), work)
    start = LEARNED + FEW
    held = rows(others(cell.seed)[start : start + FEW], MISTY)

    def score(model: TransferModel, on: Rows = held) -> float:
        right = zip(model.predict(on, len(on)), on, strict=True)
        return float(np.mean([answer["digit"]["label"] == row["digit"] for answer, row in right]))

    if cell.spec["kept"] == "best":
        model = max(models, key=score)
    elif cell.spec["kept"] == "uniform":
        model = uniform_soup(models)
    else:
        model = greedy_soup(models, score).model
    return {
        "accuracy": score(model, rows(judged(cell), MISTY)),
        "source": score(model, rows(judged(cell))),
    }


def boosted(cell: Cell, work: Path) -> Figures:
    order, labels = others(cell.seed), digits()[1]
    few = np.concatenate([order[labels[order] == digit][:EACH] for digit in range(10)])
    clear, known = flat(np.setdiff1d(order, few, True)[:LEARNED])
    known[: LEARNED // 2] = (known[: LEARNED // 2] + 1) % 10
    head, options = cell.spec["head"], cell.spec["options"]
    if head == "tradaboost":
        options = {"estimator": partial(LogisticRegression, max_iter=2000, **options)}
    found = FeatureBased(
        mapping="pca",
        components=50,
        fitted_on="both",
        head=head,
        head_options=options,
        seed=cell.seed,
    )
    answers = known if cell.spec.get("joint") else [None] * LEARNED
    found.fit(*flat(few), source=clear, source_labels=answers)
    return {"accuracy": found.score(*flat(judged(cell)))}


def classical(cell: Cell, work: Path) -> Figures:
    spec = cell.spec
    found = FeatureBased(
        mapping="pca", components=50, head=spec["head"], head_options=spec["options"]
    )
    found.fit(*flat(others(cell.seed)[:MANY]))
    return {"accuracy": found.score(*flat(judged(cell)))}


RUNS: dict[str, Callable[[Cell, Path], Figures]] = {
    HAZY: aligned,
    PARTLY: pseudo_labelled,
    SEQUENCE: in_sequence,
    TEACHER: taught,
    SOUP: souped,
    BOOSTED: boosted,
    HEADS: classical,
}


def run(cell: Cell, work: Path) -> Figures:
    """Accuracy, and `source` where there is another domain or task."""
    return RUNS[cell.setting](cell, work)


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """Nothing is asked of these tables."""
    return []
