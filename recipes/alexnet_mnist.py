"""AlexNet from ImageNet to handwritten digits: how many labels does pretraining save?

Offline, a thin AlexNet that first learns drawn letters, and then drawn digits, stands in (a minute
on one core):

    python recipes/alexnet_mnist.py

ImageNet's weights and MNIST, which torchvision downloads (the set into DIR):

    accelerate launch recipes/alexnet_mnist.py --root DIR --training.precision bf16
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions, build_encoder
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows
from mmtransfer.data.stand_ins import counts, glyphs
from mmtransfer.data.torchvision_sets import few, torchvision_splits
from mmtransfer.training.recipe import Start, compare, leave, pretrain
from mmtransfer.training.run import build_model, check_output
from mmtransfer.training.setup import end_processes

THIN = "torchvision:alexnet?size=64&thin=8&layer=penultimate"
WHOLE = "torchvision:alexnet:DEFAULT?layer=penultimate"
TASKS = {"digit": "classification"}


def load(
    root: Path | None, training: TrainingOptions, quick: bool
) -> tuple[dict[str, Rows], Encoder]:
    """Digits, and AlexNet with what it learned of the source."""
    if root is not None:
        return torchvision_splits("MNIST", root, "digit"), build_encoder(WHOLE)
    letters = glyphs("ABCDEFGHKMNPRSTUVWXY", counts(1600, quick), "letter")
    model = build_model({"image": THIN}, {"letter": "classification"}, letters["train"])
    learning = Strategy([Phase(epochs=24, lr=5e-4, encoder_lr=5e-4)])
    encoder = pretrain(model, letters, learning, training, "letters", quick).encoders["image"]
    return dict(glyphs("0123456789", counts(400, quick), "digit")), encoder


def main(
    root: Path | None = None,
    labels: list[int] = [2, 8, 32],  # noqa: B006 - only read
    epochs: int = 12,
    seeds: int = 1,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/alexnet_mnist"),
    overwrite: bool = False,
) -> None:
    """Tune a pretrained AlexNet on growing numbers of digits.

    Args:
        root: where MNIST is or goes; without it, drawn stand-ins
        labels: labelled digits per class, one number after the other
        epochs: over the digits, of 32 labels per class; fewer labels get more
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    digits, encoder = load(root, training, quick)
    table: dict[str, dict[str, list[float]]] = {}
    for count in labels:
        target = digits | {"train": few(digits["train"], "digit", count)}
        passes = max(1, round(epochs * (32 / count) ** 0.5)) if count else epochs
        tuning = Strategy([Phase(passes, lr=2e-3, encoder_lr=5e-4)])
        start = Start({"image": encoder}, TASKS, target["train"])
        contenders = {
            "from scratch": (start.scratch, tuning),
            "tuned": (start.pretrained, tuning),
        }
        chosen = begin if count == labels[-1] else {}
        title = f"{count or 'all'} labels per class"
        where = output if count == labels[-1] else None
        metrics = compare(contenders, target, training, where, title, seeds, quick, **chosen)
        table[title] = metrics["table"]["digit"]
    leave(output, metrics | {"table": table}, table, "Test accuracy on digits")
    end_processes()


if __name__ == "__main__":
    command(main, "alexnet_mnist.py")
