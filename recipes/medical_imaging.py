"""Few scans, and in few of them a lesion: transfer under heavy imbalance, judged by AUROC.

Offline, drawn livers, one scan in ten with a lesion, and a small network that first learns to
tell findings in lungs (half a minute on one core):

    python recipes/medical_imaging.py

Chest X-rays from the hub (or --data DIR laid out as an imagefolder) and a pretrained ResNet-18:

    accelerate launch recipes/medical_imaging.py --data hf-vision/chest-xray-pneumonia
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions, build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows, column, load_rows, with_label_names
from mmtransfer.data.stand_in_people import scans
from mmtransfer.data.stand_ins import counts
from mmtransfer.data.torchvision_sets import few
from mmtransfer.registry import nearest
from mmtransfer.training.recipe import Start, compare, pretrain
from mmtransfer.training.run import build_model, check_output
from mmtransfer.training.setup import end_processes

SMALL = "small-cnn?size=32&channels=1&widths=[16,32,64]&pool=mean"
WHOLE = "torchvision:resnet18:IMAGENET1K_V1?pool=mean"
SHARE = 0.1  # of the scans with a lesion
LEARNING = Strategy([Phase(epochs=5, lr=3e-3, encoder_lr=3e-3)])


def scarce(rows: Rows, rare: str, labels: int) -> Rows:
    """So many scans, of which one in ten shows what is rare."""
    found = few(rows, "label", labels)
    kinds = list(column(found, "label"))
    if rare not in kinds:
        raise ValueError(f"no scan is labelled {rare!r}.{nearest(rare, set(kinds))}")
    ill = [i for i, kind in enumerate(kinds) if kind == rare][: max(1, round(SHARE * labels))]
    well = [i for i, kind in enumerate(kinds) if kind != rare][: labels - len(ill)]
    return [found[i] for i in sorted(ill + well)]


def load(
    data: str | None, rare: str, labels: int, training: TrainingOptions, quick: bool
) -> tuple[dict[str, Rows], Encoder]:
    """Rows of `image` and `label`, and an encoder that was pretrained elsewhere."""
    if data is not None:
        splits = {k: with_label_names(v, "label") for k, v in load_rows(data).items()}
        return splits | {"train": scarce(splits["train"], rare, labels)}, build_encoder(WHOLE)
    lungs = scans(counts(1200, quick), "lung")
    tasks = dict.fromkeys(("fibre", "finding"), "classification")
    model = build_model({"image": SMALL}, tasks, lungs["train"], width=64)
    encoder = pretrain(model, lungs, LEARNING, training, "lungs", quick).encoders["image"]
    return dict(scans(counts(labels, quick), "liver", share=SHARE)), encoder


def main(
    data: str | None = None,
    rare: str = "PNEUMONIA",
    labels: int = 160,
    epochs: int = 15,
    seeds: int = 3,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/medical_imaging"),
    overwrite: bool = False,
) -> None:
    """Find the few scans with a lesion.

    Args:
        data: hub id or directory with columns image and label; without it, drawn livers
        rare: the label that is to be rare among the scans of `data`
        labels: labelled scans, one in ten of them with it
        epochs: over the scans
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target, encoder = load(data, rare, labels, training, quick)
    full = build_strategy("full", epochs=epochs, lr=2e-3, encoder_lr=1e-4 if data else 5e-4)
    plain: dict[str, Any] = {"name": "classification", "score": "auroc"}
    balanced = plain | {"class_weights": "balanced"}

    def start(task: dict[str, Any]) -> Start:
        return Start({"image": encoder}, {"label": task}, target["train"], {"width": 64})

    contenders = {
        "from scratch": (start(balanced).scratch, full),
        "tuned, plain": (start(plain).pretrained, full),
        "tuned, balanced": (start(balanced).pretrained, full),
    }
    title = f"Test AUROC, {len(target['train'])} labelled scans"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "medical_imaging.py")
