"""A frozen convolutional base under a new dense head: VGG16 from ImageNet to CIFAR-10.

Frozen means computed once: every epoch but the first reads stored features.  Offline, a thin VGG16
that first learns drawn products stands in (half a minute on one core):

    python recipes/vgg16_frozen.py

ImageNet's weights and CIFAR-10, which torchvision downloads (the set into DIR):

    accelerate launch recipes/vgg16_frozen.py --root DIR --labels 50
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import TrainingOptions, build_strategy
from mmtransfer.cli import command
from mmtransfer.training.recipe import Start, compare, photos_to_learn
from mmtransfer.training.run import check_output
from mmtransfer.training.setup import end_processes

THIN = "torchvision:vgg16?size=32&thin=8&pool=flatten"
WHOLE = "torchvision:vgg16:IMAGENET1K_V1?size=128&pool=flatten"


def main(
    root: Path | None = None,
    labels: int = 8,
    epochs: int = 30,
    seeds: int = 2,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/vgg16_frozen"),
    overwrite: bool = False,
) -> None:
    """Train a new dense head on the frozen convolutions of a pretrained VGG16.

    Args:
        root: where CIFAR-10 is or goes; without it, drawn products stand in
        labels: labelled target rows per class, 0 for all
        epochs: over the target
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target, encoder = photos_to_learn("CIFAR10", root, labels, WHOLE, THIN, training, quick)
    head = {"fusion": "concat", "width": 128, "dropout": 0.2}  # two dense layers
    start = Start({"image": encoder}, {"label": "classification"}, target["train"], head)
    frozen = build_strategy("linear_probe", epochs=epochs, lr=2e-3)
    full = build_strategy("full", epochs=max(1, epochs // 3), lr=2e-3, encoder_lr=3e-4)
    contenders = {
        "from scratch": (start.scratch, full),
        "frozen, random": (start.scratch, frozen),
        "frozen, pretrained": (start.pretrained, frozen),
    }
    title = f"Test accuracy, {len(target['train'])} labelled target rows"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "vgg16_frozen.py")
