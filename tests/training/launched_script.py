"""Run by test_launch.py and others: a short training that leaves a directory, on any launcher."""

from __future__ import annotations

from pathlib import Path

from mmtransfer.cli import command
from mmtransfer.data.products import product_rows
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.setup import end_processes
from mmtransfer.transfer.base import build_strategy

TINY = {"image": "tiny-vit?width=16&layers=1", "text": "tiny-bert?width=16&layers=1"}
TASKS = {"product": "classification"}


def main(output: Path, epochs: int = 2, resume: bool = False) -> None:
    """Train for some epochs."""
    arguments = dict(locals())
    data = {
        "train": product_rows("target/train", rows=21),
        "test": product_rows("target/test", rows=7),
    }
    model = build_model(TINY, TASKS, data["train"], "gated", 8)
    options = TrainingOptions(batch_size=10, progress=False, track=[])
    run(model, data, build_strategy("full", epochs=epochs), options, output, "", arguments, resume)
    end_processes()


if __name__ == "__main__":
    command(main, "launched_script.py")
