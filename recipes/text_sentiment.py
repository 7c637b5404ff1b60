"""Good or bad?  A BERT that has read many texts needs few labelled reviews.

Offline, a tiny BERT that learns made-up reviews of films, and then of meals, stands in (half a
minute on one core):

    python recipes/text_sentiment.py

A pretrained BERT, and reviews of films from the hub (or --data DIR with parquet files):

    accelerate launch recipes/text_sentiment.py --data cornell-movie-review-data/rotten_tomatoes
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions, build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows, load_rows, with_label_names
from mmtransfer.data.stand_ins import counts, reviews
from mmtransfer.data.torchvision_sets import few
from mmtransfer.training.recipe import Start, compare, pretrain
from mmtransfer.training.run import build_model, check_output
from mmtransfer.training.setup import end_processes

TINY = "tiny-bert?width=48&max_tokens=80"
TASKS = {"label": "classification"}
READING = Strategy([Phase(epochs=8, lr=2e-3, encoder_lr=2e-3)])


def load(
    data: str | None, bert: str, labels: int, training: TrainingOptions, quick: bool
) -> tuple[dict[str, Rows], Encoder]:
    """Rows of `text` and `label`, and BERT with what it has learned before."""
    if data is not None:
        splits = {k: with_label_names(rows, "label") for k, rows in load_rows(data).items()}
        return splits | {"train": few(splits["train"], "label", labels)}, build_encoder(bert)
    films, meals = (reviews(topic, counts(1600, quick), "label") for topic in ("films", "meals"))
    model = build_model({"text": TINY}, TASKS, films["train"], width=128)
    encoder = pretrain(model, films, READING, training, "films", quick).encoders["text"]
    return meals | {"train": few(meals["train"], "label", labels)}, encoder


def main(
    data: str | None = None,
    bert: str = "hf:google-bert/bert-base-uncased",
    labels: int = 32,
    epochs: int = 10,
    seeds: int = 2,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/text_sentiment"),
    overwrite: bool = False,
) -> None:
    """Tell good reviews from bad ones.

    Args:
        data: hub id or directory with columns text and label; without it, made-up reviews
        bert: the pretrained encoder for them (see `mmtransfer encoders`)
        labels: labelled reviews per class, 0 for all
        epochs: over them
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target, encoder = load(data, bert, labels, training, quick)
    start = Start({"text": encoder}, TASKS, target["train"])
    rates = {"lr": 1e-3, "encoder_lr": 5e-5 if data else 5e-4}
    contenders = {
        "from scratch": (start.scratch, build_strategy("full", epochs=2 * epochs, **rates)),
        "frozen": (start.pretrained, build_strategy("linear_probe", epochs=epochs, lr=2e-3)),
        "tuned": (start.pretrained, build_strategy("full", epochs=epochs, **rates)),
    }
    title = f"Test accuracy, {len(target['train'])} labelled reviews"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "text_sentiment.py")
