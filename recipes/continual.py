"""One task after the other, and what is left of the first: forgetting, and what holds it back.

Offline, drawn digits and then letters, one alphabet half after the other (a minute on one core):

    python recipes/continual.py

MNIST, Fashion-MNIST and KMNIST, which torchvision downloads into DIR:

    accelerate launch recipes/continual.py --root DIR
"""

from __future__ import annotations

from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

from mmtransfer import Phase, Strategy, TrainingOptions, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.blank import with_blank
from mmtransfer.data.rows import Rows, column
from mmtransfer.data.stand_ins import counts, glyphs
from mmtransfer.data.torchvision_sets import torchvision_splits
from mmtransfer.evaluation.charts import mean
from mmtransfer.training.recipe import leave, shortened
from mmtransfer.training.run import build_model, check_output, run
from mmtransfer.training.setup import end_processes

NETWORK = "mlp?size=28&channels=1&widths=[256,128]"
SETS = {"digits": "MNIST", "clothes": "FashionMNIST", "kana": "KMNIST"}
SYMBOLS = {"digits": "0123456789", "letters": "ABCDEFGHKM", "more letters": "NPRSTUVWXY"}
REMEMBERED = 200  # labelled rows of earlier tasks that ewc looks at
WAYS: dict[str, list[Any]] = {
    "plain": [],
    "l2_sp": [{"name": "l2_sp", "alpha": 1.0}],
    "ewc": [{"name": "ewc", "strength": 300.0}],
    "lwf": [{"name": "lwf", "weight": 2.0}],
}


def load(root: Path | None, quick: bool) -> dict[str, dict[str, Rows]]:
    """Splits of every task, each with the columns of all."""
    if root is not None:
        found = {task: torchvision_splits(name, root, task) for task, name in SETS.items()}
    else:
        size = counts(600, quick)
        found = {task: dict(glyphs(symbols, size, task)) for task, symbols in SYMBOLS.items()}
    return {task: with_blank(splits, *found) for task, splits in found.items()}


def main(
    root: Path | None = None,
    ways: list[str] = [*WAYS],  # noqa: B006 - only read
    epochs: int = 12,
    seeds: int = 1,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/continual"),
    overwrite: bool = False,
) -> None:
    """Learn a sequence of tasks with one network.

    Args:
        root: where the three data sets are or go; without it, drawn characters stand in
        ways: what holds forgetting back, of plain, l2_sp, ewc and lwf
        epochs: over each task
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    data = load(root, quick)
    tasks = {
        task: {"name": "classification", "classes": sorted(set(column(rows["train"], task)))}
        for task, rows in data.items()
    }
    first, *later = data
    every = [row for splits in data.values() for row in splits["test"]]
    learning = Strategy([Phase(epochs, lr=1e-3, encoder_lr=1e-3)])
    learning = shortened(learning) if quick else learning
    scores: dict[str, dict[str, list[float]]] = {}

    def note(way: str, row: str, value: float) -> None:
        scores.setdefault(row, {}).setdefault(way, []).append(value)

    def fresh(seed: int) -> Any:
        return build_model({"image": NETWORK}, tasks, data[first]["train"], width=128, seed=seed)

    for seed in range(seeds):
        for task in data:
            alone = run(fresh(seed), data[task], learning, training, title=f"{task} alone")
            note("from scratch", task, alone["test"][task]["accuracy"])
        begun = fresh(seed)
        start = run(begun, data[first] | {"test": every}, learning, training, title=first)
        for way in ways:
            model, reached = deepcopy(begun), {first: start["test"][first]["accuracy"]}
            for number, task in enumerate(later):
                past = [data[t]["train"] for t in [first, *later[:number]]]
                some = [row for rows in past for row in islice(rows, REMEMBERED // len(past))]
                splits = data[task] | {"test": every, "source": some}
                plan = build_strategy(learning, WAYS[way])
                last = (way, seed, task) == (ways[-1], seeds - 1, later[-1])
                where = (output, f"{way}, {task}") if last else (None, f"{way}, {task}")
                metrics = run(model, splits, plan, training, *where, **(begin if last else {}))
                reached[task] = metrics["test"][task]["accuracy"]
            ends = {task: metrics["test"][task]["accuracy"] for task in data}
            for task, end in ends.items():
                note(way, task, end)
            note(way, "forgotten", mean([reached[t] - ends[t] for t in [first, *later[:-1]]]))
    leave(output, metrics | {"table": scores}, scores, "Test accuracy after the last task")
    end_processes()


if __name__ == "__main__":
    command(main, "continual.py")
