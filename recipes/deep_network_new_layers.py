"""Parameters of a source network, new convolution layers on top, and the whole network tuned.

Offline, a small network that first learns drawn products, and then new ones, stands in (a minute
on one core):

    python recipes/deep_network_new_layers.py

ImageNet's ResNet-18 and CIFAR-10, which torchvision downloads (the set into DIR):

    accelerate launch recipes/deep_network_new_layers.py --root DIR --labels 50
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions
from mmtransfer.cli import command
from mmtransfer.encoders.extended import ExtendedEncoder
from mmtransfer.training.recipe import Start, compare, photos_to_learn
from mmtransfer.training.run import check_output
from mmtransfer.training.setup import end_processes

SMALL = "small-cnn?size=32&widths=[16,32,64]"
WHOLE = "torchvision:resnet18:IMAGENET1K_V1?size=128"


def extended(source: Encoder, added: int) -> Encoder:
    """The source network with so many new convolution layers on the map that it gives."""
    encoder = ExtendedEncoder(source, added, kind="conv")
    encoder.pretrained = source.pretrained
    return encoder


def main(
    root: Path | None = None,
    labels: int = 8,
    added: int = 2,
    epochs: int = 20,
    seeds: int = 2,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/deep_network_new_layers"),
    overwrite: bool = False,
) -> None:
    """Extend a pretrained network by convolution layers and tune all of it.

    Args:
        root: where CIFAR-10 is or goes; without it, drawn products stand in
        labels: labelled target rows per class, 0 for all
        added: new layers
        epochs: over the target
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target, source = photos_to_learn("CIFAR10", root, labels, WHOLE, SMALL, training, quick)
    task = {"label": "classification"}
    as_it_is = Start({"image": source}, task, target["train"])
    deeper = Start({"image": extended(source, added)}, task, target["train"])
    rates = {"lr": 2e-3, "encoder_lr": 1e-3}
    whole = Strategy([Phase(epochs, **rates)])
    contenders = {
        "from scratch": (deeper.scratch, whole),
        "no new layers": (as_it_is.pretrained, whole),
        "new layers alone": (
            deeper.pretrained,
            Strategy([Phase(epochs, top_stages=added, **rates)]),
        ),
        "whole network": (deeper.pretrained, whole),
    }
    title = f"Test accuracy, {len(target['train'])} labelled target rows"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "deep_network_new_layers.py")
