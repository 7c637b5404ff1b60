"""What a dense network learned of digits helps it with clothes: MNIST to Fashion-MNIST.

Its weights are copied, a second head is added, and accuracy is told on both tasks, with a penalty
R(w) of strength lambda.  Offline, with drawn digits and letters (half a minute on one core):

    python recipes/mnist_to_fashion.py

The real data sets, which torchvision downloads into DIR:

    accelerate launch recipes/mnist_to_fashion.py --root DIR --labels 20
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from mmtransfer import Phase, Strategy, TrainingOptions, TransferModel
from mmtransfer.cli import command
from mmtransfer.data.blank import with_blank
from mmtransfer.data.rows import Rows, column
from mmtransfer.data.stand_ins import counts, glyphs
from mmtransfer.data.torchvision_sets import few, torchvision_splits
from mmtransfer.methods.base import build_method
from mmtransfer.registry import nearest
from mmtransfer.training.recipe import compare, pretrain
from mmtransfer.training.run import build_model, check_output
from mmtransfer.training.setup import end_processes

NETWORK = "mlp?size=28&channels=1&widths=[256,128]"
PENALTIES = ("weight_decay", "l2_sp")


def load(root: Path | None, labels: int, quick: bool) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Source with `digit` and target with `garment`, or what stands in for them."""
    if root is not None:
        target = torchvision_splits("FashionMNIST", root, "garment", labels)
        return torchvision_splits("MNIST", root, "digit"), target
    source = glyphs("0123456789", counts(2000, quick), "digit")
    target = glyphs("ABCDEFGHKM", counts(1000, quick), "garment")
    return source, target | {"train": few(target["train"], "garment", labels)}


def main(
    root: Path | None = None,
    labels: int = 8,
    penalty: str = "weight_decay",
    strength: float = 0.05,
    seeds: int = 3,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/mnist_to_fashion"),
    overwrite: bool = False,
) -> None:
    """Copy the weights of a digit network to recognise clothes.

    Args:
        root: where the real data sets are or go; without it, drawn stand-ins
        labels: labelled target rows per class, 0 for all
        penalty: R(w): "weight_decay" pulls weights to zero, "l2_sp" to the copied ones
        strength: lambda, its factor
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    arguments = dict(locals())
    if penalty not in PENALTIES:
        raise ValueError(f"unknown penalty {penalty!r}.{nearest(penalty, PENALTIES)}")
    check_output(output, overwrite)
    source, target = load(root, labels, quick)
    tasks = {
        task: {"name": "classification", "classes": sorted(set(column(data["train"], task)))}
        for task, data in {"digit": source, "garment": target}.items()
    }
    source, target = (with_blank(data, *tasks) for data in (source, target))

    def fresh(seed: int = 0) -> TransferModel:
        return build_model({"image": NETWORK}, tasks, source["train"], width=128, seed=seed)

    pretraining = Strategy([Phase(epochs=12, lr=1e-3, encoder_lr=1e-3)])
    digits = pretrain(fresh(), source, pretraining, training, "digits", quick)
    decay = strength if penalty == "weight_decay" else 0.0
    rates = {"lr": 2e-3, "weight_decay": decay}
    methods = [build_method({"name": "l2_sp", "alpha": strength})] if penalty == "l2_sp" else []
    tuning = Strategy([Phase(30, encoder_lr=5e-4, **rates)], methods)
    contenders = {
        "from scratch": (fresh, Strategy([Phase(30, encoder_lr=1e-3, **rates)])),
        "frozen": (lambda seed: deepcopy(digits), Strategy([Phase(30, **rates)])),
        "copied": (lambda seed: deepcopy(digits), tuning),
    }
    target["source"] = source["test"]
    title = f"Test accuracy, {len(target['train'])} labelled target rows"
    begin = {"arguments": arguments, "overwrite": overwrite}
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "mnist_to_fashion.py")
