"""Is what `mmtransfer choose` predicts before training true, and how much sooner is it known?

    OMP_NUM_THREADS=1 python benchmarks/choose.py

The retail set with encoders that know much, something else and nothing: MobileNetV2 and ResNet-20
of CIFAR-10 for the photos, MiniLM and a random BERT for the labels, KWT-1 for the speech, and all
17 sets of them with one encoder per column.  All are scored, then all are trained on the frozen
encoders' features; these are stored before either is timed.

For each score: the weighted tau and Kendall's tau between prediction and test accuracy, and the
seconds of choosing, with loading data and encoders, as a share of those of all trainings.  Exit
code 1 where the default score misses a limit.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import RESULTS, decide, shared_directory, write_results
from peers import minilm
from rich.console import Console
from rich.table import Table

from mmtransfer import TrainingOptions
from mmtransfer.cli import command
from mmtransfer.data.rows import load_rows
from mmtransfer.selection.candidates import Pool
from mmtransfer.selection.choose import choose
from mmtransfer.selection.ranking import correlation
from mmtransfer.selection.report import draw, show

TASKS = {"product": "classification", "category": "classification"}
MODEL = {"fusion": "gated", "width": 256, "dropout": 0.3}
OTHERS = ("logme", "h_score", "regularised_h_score", "transrate", "gbc", "knn")
LEAST_TAU, MOST_TIME = 0.7, 0.1


def encoders_of(shared: Path) -> dict[str, list[str]]:
    """Candidates by column."""
    sys.path.insert(0, str(Path(__file__).parent))  # where the ResNet-20 is
    models = shared / "models"
    return {
        "image": [
            f"hf:{models / 'mobilenet-v2-imagenet'}",
            f"resnet20:ResNet20?directory={models / 'resnet20-cifar10'}",
        ],
        "text": [f"hf:{minilm()}", "tiny-bert"],
        "audio": [f"kwt:{models / 'kwt1-speech-commands'}"],
    }


def main(
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 1e-3,
    verify: int = 1000,
    others: list[str] = list(OTHERS),  # noqa: B006 - only read
    cache: str | None = None,
    check: bool = True,
    output: Path = RESULTS / "choose",
) -> None:
    """Compare predictions with trainings on the retail set.

    Args:
        epochs: of each training
        batch_size: rows of a step
        lr: peak rate of fusion and heads
        verify: how many of the best are trained, by default all
        others: scores that stand beside the default one
        cache: directory of the feature store
        check: end with exit code 1 where a limit is missed
        output: directory for results.json and choice.png
    """
    shared = shared_directory()
    options = TrainingOptions(batch_size=batch_size, evaluation_batch_size=512, cache=cache)
    given = (str(shared / "data" / "retail"), encoders_of(shared), TASKS)
    data, encoders, _ = given
    splits = load_rows(data)
    pool = Pool(encoders, splits["train"], options.seed)
    for split, rows in splits.items():
        for pair in pool.encoders:
            pool.encode(*pair, rows, split, options)
    choice = choose(
        *given,
        verify=verify,
        model_options=MODEL,
        strategy_options={"epochs": epochs, "lr": lr},
        training=options,
    )
    show(choice)
    trained = {tuple(c.encoders.items()): c.trained for c in choice.candidates}
    found: dict[str, Any] = {}
    for score in (choice.score, *others):
        beside = choice if score == choice.score else choose(*given, score, training=options)
        for candidate in beside.candidates:
            candidate.trained = trained[tuple(candidate.encoders.items())]
        seconds = sum(s for what, s in beside.seconds.items() if what != "training")
        found[score] = {
            **(correlation(beside.candidates) or {}),
            "seconds": seconds,
            "predicting": beside.seconds["predicting"],
            "share": seconds / choice.seconds["training"],
        }
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "model": MODEL}
    candidates = [asdict(c) | {"encoders": list(c.encoders)} for c in choice.candidates]
    summary = {"chosen": choice.chosen.label, "reasons": choice.reasons, "seconds": choice.seconds}
    results = {"settings": settings, "scores": found, **summary, "candidates": candidates}
    write_results(output / "results.json", results)
    draw(choice, output / "choice.png")
    table = Table(title="prediction and truth", title_justify="left")
    table.add_column("score")
    for heading in ("weighted tau", "Kendall's tau", "seconds", "share of training"):
        table.add_column(heading, justify="right")
    for score, figures in found.items():
        cells = [f"{figures[name]:.3f}" for name in ("weighted", "kendall")]
        table.add_row(score, *cells, f"{figures['seconds']:.1f}", f"{figures['share']:.3f}")
    Console().print(table)
    first = found[choice.score]
    failures = []
    if first["weighted"] < LEAST_TAU:
        failures.append(f"weighted tau {first['weighted']:.3f}, below {LEAST_TAU}")
    if first["share"] > MOST_TIME:
        failures.append(f"predicting took {first['share']:.3f} of training, over {MOST_TIME}")
    decide(failures if check else [])


if __name__ == "__main__":
    command(main, "choose.py")
