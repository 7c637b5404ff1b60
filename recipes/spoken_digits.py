"""Which digit, and who says it?  Two tasks on one sound encoder.

Offline, a tiny wav2vec 2.0 that learns made-up words in many voices, and then digits of six
speakers, stands in (a minute on one core):

    python recipes/spoken_digits.py

The Free Spoken Digit Dataset from the hub or a directory, with wav2vec 2.0 or KWT:

    accelerate launch recipes/spoken_digits.py --data mteb/free-spoken-digit-dataset
    python recipes/spoken_digits.py --data DIR --encoder "kwt:KWT_DIR?tokens=mean"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions, build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows, columns_of, load_rows, with_label_names
from mmtransfer.data.stand_ins import counts, made_up, utterances
from mmtransfer.data.torchvision_sets import few
from mmtransfer.training.recipe import Start, compare, pretrain
from mmtransfer.training.run import build_model, check_output, no_column
from mmtransfer.training.setup import end_processes

TINY = "tiny-wav2vec2?width=48"
HEARING = Strategy([Phase(epochs=8, lr=3e-3, encoder_lr=3e-3)])
DIGITS = dict(zip(made_up(10, seed=1), map(str, range(10)), strict=True))  # how they are said


def load(
    data: str | None, encoder: str, labels: int, training: TrainingOptions, quick: bool
) -> tuple[dict[str, Rows], Encoder]:
    """Rows of `audio`, `digit` and `speaker`, and an encoder with what it learned before."""
    if data is not None:
        splits = load_rows(data)
        digit = "digit" if "digit" in columns_of(splits["train"]) else "label"
        for name in (digit, "speaker"):
            if name not in columns_of(splits["train"]):
                raise no_column(name, splits["train"])
            splits = {k: with_label_names(rows, name) for k, rows in splits.items()}
        return splits | {"train": few(splits["train"], digit, labels)}, build_encoder(encoder)
    words = utterances(made_up(20), counts(1200, quick), voices=range(6, 24))
    tasks = dict.fromkeys(("word", "speaker"), "classification")
    model = build_model({"audio": TINY}, tasks, words["train"], width=128)
    heard = pretrain(model, words, HEARING, training, "words", quick).encoders["audio"]
    said = utterances(list(DIGITS), counts(400, quick), seed=1, voices=range(6))
    target = {k: [row | {"digit": DIGITS[row["word"]]} for row in v] for k, v in said.items()}
    return target | {"train": few(target["train"], "digit", labels)}, heard


def main(
    data: str | None = None,
    encoder: str = "hf:facebook/wav2vec2-base?pool=mean",
    labels: int = 10,
    epochs: int = 12,
    seeds: int = 1,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/spoken_digits"),
    overwrite: bool = False,
) -> None:
    """Recognise digit and speaker at once.

    Args:
        data: hub id or directory of FSDD with columns audio, digit (or label) and speaker; without
            it, made-up digits
        encoder: for its recordings (see `mmtransfer encoders`)
        labels: recordings per digit to learn from, 0 for all
        epochs: over them
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target, heard = load(data, encoder, labels, training, quick)
    digit = "digit" if "digit" in columns_of(target["train"]) else "label"
    tasks: dict[str, Any] = dict.fromkeys((digit, "speaker"), "classification")
    start = Start({"audio": heard}, tasks, target["train"])
    alone = Start({"audio": heard}, {digit: "classification"}, target["train"])
    rates = {"lr": 2e-3, "encoder_lr": 1e-4 if data else 1e-3}
    full = build_strategy("full", epochs=epochs, **rates)
    contenders = {
        "from scratch": (start.scratch, full),
        "frozen": (start.pretrained, build_strategy("linear_probe", epochs=2 * epochs, lr=2e-3)),
        "tuned, digit alone": (alone.pretrained, full),
        "tuned": (start.pretrained, full),
    }
    title = f"Test accuracy, {len(target['train'])} labelled recordings"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "spoken_digits.py")
