"""Is there a cat?  Is there a dog?  Two yes/no questions to one shared network.

Offline, two questions about drawn products, and a small network that first learns others (half a
minute on one core):

    python recipes/multitask_attributes.py

Photos of VOC 2007, which torchvision downloads into DIR, and a pretrained ResNet-18:

    accelerate launch recipes/multitask_attributes.py --root DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtransfer import Encoder, TrainingOptions, build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows
from mmtransfer.data.stand_ins import counts, photos
from mmtransfer.data.torchvision_sets import voc_splits
from mmtransfer.training.recipe import Start, compare, learned_from_photos
from mmtransfer.training.run import check_output
from mmtransfer.training.setup import end_processes

SMALL = "small-cnn?size=32&widths=[16,32,64]&pool=mean"
WHOLE = "torchvision:resnet18:IMAGENET1K_V1?pool=mean"
LABELLED = 128  # photos of the stand-in


def load(
    root: Path | None, training: TrainingOptions, quick: bool
) -> tuple[dict[str, Rows], list[str], Encoder]:
    """Rows of `image` with a yes/no column per question, the questions, and an encoder."""
    if root is not None:
        return voc_splits(root, ["cat", "dog"]), ["cat", "dog"], build_encoder(WHOLE)
    shown = photos("target", counts(LABELLED, quick))
    rows = {split: [row | answers(row) for row in found] for split, found in shown.items()}
    return rows, ["lined", "lidded"], learned_from_photos(SMALL, training, quick=quick)


def answers(row: dict[str, Any]) -> dict[str, str]:
    """Is it striped or checked?  Does it have a lid: is it a bottle, a jar or a tube?"""
    return {
        "lined": "yes" if row["pattern"] in ("striped", "checked") else "no",
        "lidded": "yes" if row["shape"] in ("bottle", "jar", "tube") else "no",
    }


def main(
    root: Path | None = None,
    epochs: int = 15,
    seeds: int = 2,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/multitask_attributes"),
    overwrite: bool = False,
) -> None:
    """Answer two yes/no questions with one network.

    Args:
        root: where VOC 2007 is or goes; without it, drawn products stand in
        epochs: over the target
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target, questions, encoder = load(root, training, quick)
    tasks = {q: {"name": "classification", "class_weights": "balanced"} for q in questions}
    together = Start({"image": encoder}, tasks, target["train"])
    full = build_strategy("full", epochs=epochs, lr=2e-3, encoder_lr=1e-4 if root else 1e-3)
    contenders = {"from scratch": (together.scratch, full)}
    for question in questions:
        one = Start({"image": encoder}, {question: tasks[question]}, target["train"])
        contenders[f"{question} alone"] = (one.pretrained, full)
    contenders["together"] = (together.pretrained, full)
    title = f"Test accuracy, {len(target['train'])} labelled photos"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "multitask_attributes.py")
