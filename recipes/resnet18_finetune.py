"""ResNet-18 on few labels: its head, its top, the head and then all, or all at once.

Offline, a thin ResNet-18 that first learns drawn products stands in (a minute on one core):

    python recipes/resnet18_finetune.py

ImageNet's weights and the pets of Oxford, which torchvision downloads (the set into DIR):

    accelerate launch recipes/resnet18_finetune.py --root DIR --labels 20
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Phase, Strategy, TrainingOptions, build_strategy
from mmtransfer.cli import command
from mmtransfer.training.recipe import Start, compare, photos_to_learn
from mmtransfer.training.run import check_output
from mmtransfer.training.setup import end_processes

THIN = "torchvision:resnet18?size=32&thin=4&pool=mean"
WHOLE = "torchvision:resnet18:IMAGENET1K_V1?pool=mean"


def main(
    root: Path | None = None,
    labels: int = 8,
    epochs: int = 12,
    seeds: int = 2,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/resnet18_finetune"),
    overwrite: bool = False,
) -> None:
    """Compare ways to fine-tune a pretrained ResNet-18.

    Args:
        root: where the Oxford-IIIT Pet set is or goes; without it, drawn products stand in
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
    target, encoder = photos_to_learn("OxfordIIITPet", root, labels, WHOLE, THIN, training, quick)
    start = Start({"image": encoder}, {"label": "classification"}, target["train"])
    rates = {"lr": 2e-3, "encoder_lr": 1e-3}
    head, full = build_strategy("linear_probe", epochs=epochs, lr=2e-3), Phase(epochs, **rates)
    contenders = {
        "from scratch": (start.scratch, Strategy([full])),
        "head": (start.pretrained, head),
        "top stages": (start.pretrained, Strategy([Phase(epochs, top_stages=2, **rates)])),
        "head, then all": (start.pretrained, Strategy([*head.phases, full])),
        "all": (start.pretrained, Strategy([full])),
    }
    title = f"Test accuracy, {len(target['train'])} labelled target rows"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "resnet18_finetune.py")
