"""Labels in one domain, none in the other: source only, or features aligned with the target.

Offline, digits on black are labelled, and digits in the haze are not (a minute on one core):

    python recipes/domain_shift.py

MNIST with labels and USPS without, which torchvision downloads into DIR:

    accelerate launch recipes/domain_shift.py --root DIR --ways '["mmd", "dann"]'
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Phase, Strategy, TrainingOptions, build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows
from mmtransfer.data.stand_ins import counts, glyphs
from mmtransfer.data.torchvision_sets import few, torchvision_splits
from mmtransfer.training.recipe import Start, compare
from mmtransfer.training.run import check_output
from mmtransfer.training.setup import end_processes

NETWORK = "small-cnn?size=28&channels=1&widths=[16,32,64]&pool=mean"
DIGITS = "0123456789"


def load(root: Path | None, quick: bool) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Rows of `image` and `digit` in two domains; those of USPS are numbers, of MNIST names."""
    if root is not None:
        source = torchvision_splits("MNIST", root, "digit")
        names = sorted(set(source["test"].labels["digit"]))
        return source, torchvision_splits("USPS", root, "digit", names=names)
    size = counts(1000, quick)
    return glyphs(DIGITS, size, "digit"), glyphs(DIGITS, size, "digit", look="haze", seed=1)


def main(
    root: Path | None = None,
    ways: list[str] = ["adabn", "coral", "mmd", "dann"],  # noqa: B006 - only read
    labels: int = 0,
    epochs: int = 12,
    seeds: int = 1,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/domain_shift"),
    overwrite: bool = False,
) -> None:
    """Recognise digits of a domain in which none is labelled.

    Args:
        root: where MNIST and USPS are or go; without it, drawn digits stand in
        ways: methods that align the domains (see `mmtransfer methods`)
        labels: labelled source rows per class, 0 for all
        epochs: over the source
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    source, target = load(root, quick)
    labelled = few(source["train"], "digit", labels)
    # No validation: labels of the target would be needed to choose by them.
    data = {"train": labelled, "unlabelled": target["train"], "test": target["test"]}
    data["source"] = source["test"]
    start = Start({"image": build_encoder(NETWORK)}, {"digit": "classification"}, labelled)
    phases = [Phase(epochs, lr=1e-3, encoder_lr=1e-3)]
    contenders = {"source only": (start.scratch, Strategy(phases))}
    for way in ways:
        contenders[way] = (start.scratch, build_strategy(Strategy(phases), [way]))
    title = f"Test accuracy, {len(target['train'])} unlabelled target rows"
    compare(contenders, data, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "domain_shift.py")
