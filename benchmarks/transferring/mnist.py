"""Digits of MNIST as rows, clear and hazy, and a small network that a cell trains on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from measuring import shared_directory

from mmtransfer import Trainer, TransferModel
from mmtransfer.data.digit_sources import read_pictures
from mmtransfer.data.rows import Rows
from mmtransfer.training.run import build_model
from transferring.cells import Cell
from transferring.training import WIDTH, strategy_of, trained, training_options

JUDGED, BATCH = 1000, 64
NETWORK = "small-cnn?size=28&channels=1&widths={widths}&pool=mean"
SMALL, STUDENT = (NETWORK.format(widths=widths) for widths in ("[16,32,64]", "[8,16,32]"))
FADED, HAZE, GRAIN = 0.6, 110.0, 15.0  # of the contrast; of grey values up to 255


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 28, 28) and digits of MNIST."""
    found = read_pictures(shared_directory() / "data" / "mnist")["train"]
    return found.values, found.digits


def hazy(picture: np.ndarray, number: int, haze: float) -> np.ndarray:
    """A picture as it is at 0, of little contrast, bright and noisy at 1."""
    grain = np.random.default_rng(number).normal(0, GRAIN, picture.shape)
    light = (1 - haze * FADED) * picture + haze * (HAZE + grain)
    return light.clip(0, 255).astype(np.uint8)


def judged(cell: Cell) -> np.ndarray:
    """Numbers of the digits that are tested, or of others that options are chosen by."""
    return JUDGED * ["test", "validation"].index(cell.judged) + np.arange(JUDGED)


def others(seed: int) -> np.ndarray:
    """Numbers of all that are not judged, in an order that changes with the seed."""
    return np.random.default_rng(seed).permutation(np.arange(2 * JUDGED, len(digits()[1])))


def rows(
    numbers: Iterable[int], haze: float = 0.0, columns: Sequence[str] = ("digit",)
) -> list[dict[str, Any]]:
    """Rows of `image` and its digit in each of these columns."""
    pictures, labels = digits()
    return [
        {"image": hazy(pictures[i], i, haze)} | dict.fromkeys(columns, int(labels[i]))
        for i in map(int, numbers)
    ]


def fit(
    cell: Cell,
    work: Path,
    train: Rows,
    model: TransferModel | str = SMALL,
    further: Mapping[str, Rows] | None = None,
    seed: int | None = None,
    **changes: Any,
) -> Trainer:
    """A network, by default a new one, trained as the cell says; the caller closes it."""
    spec, seed = cell.spec | changes, cell.seed if seed is None else seed
    if isinstance(model, str):
        model = build_model(
            {"image": model}, {"digit": "classification"}, train, width=WIDTH, seed=seed
        )
    asked = {"name": "full", "encoder_lr": spec["lr"]} | spec.get("strategy", {})
    asked |= {"epochs": spec["epochs"], "lr": spec["lr"]}
    options = training_options(work, seed, batch_size=BATCH)
    return trained(model, train, strategy_of(spec | {"strategy": asked}), options, further)


def flat(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 784) and digits (N,)."""
    return digits()[0][numbers].reshape(len(numbers), -1) / 255, digits()[1][numbers]
