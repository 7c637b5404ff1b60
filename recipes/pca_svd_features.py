"""Frozen features, a PCA or SVD mapping fitted on source and target, and a classical head.

Offline, the features come from a small network that first learns drawn products (half a minute on
one core):

    python recipes/pca_svd_features.py

CIFAR-100 as source and CIFAR-10 as target, which torchvision downloads into DIR, and a pretrained
ResNet-18:

    python recipes/pca_svd_features.py --root DIR --labels 20
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Encoder, TrainingOptions, build_encoder
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows
from mmtransfer.data.stand_ins import counts, new_products, photos
from mmtransfer.data.torchvision_sets import torchvision_splits
from mmtransfer.training.recipe import learned_from_photos, leave, untrained
from mmtransfer.training.run import check_output, clear_output
from mmtransfer.training.setup import end_processes
from mmtransfer.transfer.feature_based import FeatureBased

SMALL = "small-cnn?size=32&widths=[16,32,64]&pool=mean"
WHOLE = "torchvision:resnet18:IMAGENET1K_V1?pool=mean&size=128"
MAPPINGS = ("none", "pca", "svd", "whitening")
SIDES = ("target", "source", "both")


def load(
    root: Path | None, labels: int, training: TrainingOptions, quick: bool
) -> tuple[Rows, dict[str, Rows], Encoder]:
    """Rows of the source, the target, and a network that learned from the source."""
    if root is not None:
        source = torchvision_splits("CIFAR100", root, "fine", 50)["train"]
        return source, torchvision_splits("CIFAR10", root, "label", labels), build_encoder(WHOLE)
    source = photos("source", {"train": counts(600, quick)["train"]})["train"]
    encoder = learned_from_photos(SMALL, training, quick=quick)
    return source, new_products(labels, quick), encoder


def main(
    root: Path | None = None,
    labels: int = 4,
    components: int = 24,
    head: str = "logistic",
    seeds: int = 1,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/pca_svd_features"),
    overwrite: bool = False,
) -> None:
    """Classify by mapped features of a frozen network.

    Args:
        root: where CIFAR-100 and CIFAR-10 are or go; without it, drawn products stand in
        labels: labelled target rows per class, 0 for all
        components: that a mapping keeps
        head: linear, logistic, knn or svm
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    source, target, encoder = load(root, labels, training, quick)
    scores: dict[str, dict[str, list[float]]] = {}

    def measure(encoder: Encoder, mapping: str, side: str) -> float:
        kept = None if mapping == "none" else components
        options = {"mapping": mapping, "components": kept, "fitted_on": side, "head": head}
        model = FeatureBased({"image": encoder}, "label", options=training, **options)
        return model.fit(target["train"], source=source).score(target["test"])

    for mapping in MAPPINGS:
        row = scores[mapping] = {"random network": [], **{f"fitted on {s}": [] for s in SIDES}}
        for seed in range(seeds):
            row["random network"].append(measure(untrained(encoder, seed), mapping, "target"))
        for side in SIDES:
            row[f"fitted on {side}"].append(measure(encoder, mapping, side))
    clear_output(output)
    title = f"Test accuracy, {len(target['train'])} labelled target rows"
    leave(output, {"table": scores, "arguments": begin["arguments"]}, scores, title)
    end_processes()


if __name__ == "__main__":
    command(main, "pca_svd_features.py")
