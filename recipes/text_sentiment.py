"""Good or bad?  A BERT that has read many texts needs few labelled reviews.

Offline, a tiny BERT that learns made-up reviews of films and hotels, and then of meals, stands in
(half a minute on one core):

    python recipes/text_sentiment.py

A pretrained BERT, and reviews of films from the hub (or --data DIR with parquet files):

    accelerate launch recipes/text_sentiment.py --data cornell-movie-review-data/rotten_tomatoes
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions, TransferModel
from mmtransfer import build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows, load_rows, with_label_names
from mmtransfer.data.stand_ins import counts, reviews
from mmtransfer.data.torchvision_sets import few
from mmtransfer.encoders.huggingface_load import untrained
from mmtransfer.training.recipe import compare, pretrain
from mmtransfer.training.run import build_model, check_output
from mmtransfer.training.setup import end_processes

TINY = "tiny-bert?width=48&max_tokens=80"


def load(
    data: str | None, bert: str, labels: int, training: TrainingOptions, quick: bool
) -> tuple[dict[str, Rows], Encoder, Encoder]:
    """The reviews, BERT without what it has learned, and with it."""
    if data is not None:
        splits = {k: with_label_names(rows, "label") for k, rows in load_rows(data).items()}
        pretrained = build_encoder(bert)
        splits["train"] = few(splits["train"], "label", labels)
        return splits, untrained(pretrained), pretrained
