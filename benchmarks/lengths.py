"""What batches of rows of similar length save: training with `order: length` against random order.

    python benchmarks/lengths.py

Texts of 5 to 200 tokens and sounds of 0.5 to 8 seconds, both log-normal as utterances are, train a
small BERT and a small wav2vec 2.0: each alone, and both together where a row is a recording with
its transcript (`both`) or with a text that has nothing to do with it (`unrelated`, for information:
a row that is short in one and long in the other fits nowhere).  Whole epochs of the trainer in
turns, reading included.  In every epoch of either order each row must come exactly once.  The ratio
is that of CPU seconds on a CPU, of the clock on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, decide, in_turns, ratio, typical, write_results
from rich.console import Console
from rich.table import Table

from mmtransfer import Phase, Strategy, Trainer, TrainingOptions
from mmtransfer.cli import command
from mmtransfer.features import Batch, Inputs, Outputs, Row, RowContext
from mmtransfer.methods.base import Method
from mmtransfer.training.run import build_model

RATE = 16_000  # Hz
TOKENS, SECONDS = (5, 200), (0.5, 8.0)
CHARACTERS_PER_SECOND = 15  # of a transcript
SPECS = {
    "text": "tiny-bert?width=128&layers=4&max_tokens=208",
    "sound": "tiny-wav2vec2?width=128&layers=4",
}
CASES = {
    "text": ("text",),
    "sound": ("sound",),
    "both": ("text", "sound"),
    "unrelated": ("text", "sound"),
}
JUDGED = ("text", "sound", "both")
ORDERS = ("shuffled", "length")


class Seen(Method):
    """Notes which rows training reads, by epoch, and how much of it is padding."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.real, self.padded = 0.0, 0.0

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None:
        self.rows.setdefault(context.epoch, []).extend(index for index, _ in rows)

    def on_loss(self, loss: Any, model: Any, batch: Batch, outputs: Outputs) -> Any:
        for inputs in batch.inputs.values():
            assert isinstance(inputs, Inputs)
            mask = inputs.values.get("attention_mask", inputs.values.get("sound_mask"))
            assert mask is not None
            self.real, self.padded = self.real + float(mask.sum()), self.padded + mask.numel()
        return loss


def utterances(case: str, rows: int, seed: int) -> list[Row]:
    """Rows of `text`, `sound` (16 kHz noise) and a `label` that the lengths do not tell."""
    rng = np.random.default_rng(seed)
    seconds = np.clip(rng.lognormal(np.log(2.0), 0.7, rows), *SECONDS)
    if case == "unrelated":
        seconds = rng.permutation(seconds)
        characters = rng.lognormal(np.log(30), 0.7, rows)
    else:
        characters = CHARACTERS_PER_SECOND * seconds * rng.lognormal(0, 0.15, rows)
    made = []
    for s, c in zip(seconds, np.clip(characters, *TOKENS), strict=True):
        letters = rng.integers(97, 123, int(c) - 1)  # the end of the text is a token, too
        sound = rng.normal(0, 0.1, int(s * RATE)).astype(np.float32)
        text = bytes(letters.astype(np.uint8)).decode()
        sampled = {"array": sound, "sampling_rate": RATE}
        made.append({"text": text, "sound": sampled, "label": int(rng.integers(2))})
    return made


def train(case: str, rows: list[Row], order: str, options: Mapping[str, Any]) -> Seen:
    """One epoch; raises `ArithmeticError` unless each row came exactly once."""
    encoders = {name: SPECS[name] for name in CASES[case]}
    model = build_model(encoders, {"label": "classification"}, rows, width=64)
    seen = Seen()
    strategy = Strategy([Phase(1, lr=1e-3, encoder_lr=1e-4)], [seen])
    chosen = TrainingOptions(order=order, progress=False, **options)
    trainer = Trainer(model, rows, None, strategy, chosen)
    trainer.fit()
    trainer.close()
    for epoch, found in seen.rows.items():
        if sorted(found) != list(range(len(rows))):
            raise ArithmeticError(f"order {order!r}, epoch {epoch}: not each row exactly once")
    return seen


def measure(case: str, rows: int, turns: int, options: Mapping[str, Any]) -> dict[str, Any]:
    data = utterances(case, rows, seed=0)
    seen: dict[str, Seen] = {}

    def epoch(order: str) -> None:
        seen[order] = train(case, data, order, options)

    found = in_turns({order: partial(epoch, order) for order in ORDERS}, turns)
    return {
        "speedup": {c: ratio(found["shuffled"], found["length"], c) for c in ("wall", "cpu")},
        "seconds": {order: typical(found[order]) for order in ORDERS},
        "padding": {order: 1 - seen[order].real / seen[order].padded for order in ORDERS},
    }


def main(
    rows: int = 512,
    batch_size: int = 16,
    turns: int = 2,
    limit: float = 1.5,
    output: Path = RESULTS / "lengths.json",
) -> None:
    """Compare training in batches of similar length with training in random batches.

    Args:
        rows: of an epoch
        batch_size: rows of a step
        turns: epochs of each order that count
        limit: smallest speed-up that passes
        output: JSON file
    """
    options = {"batch_size": batch_size}
    cases = {case: measure(case, rows, turns, options) for case in CASES}
    settings = {"rows": rows, "batch_size": batch_size, "turns": turns, "encoders": SPECS}
    write_results(output, {"settings": settings, "limit": limit, "cases": cases})
    show(cases, f"An epoch of {rows} rows, {batch_size} per step, random order and by length")
    clock = "wall" if torch.cuda.is_available() else "cpu"
    failures = [
        f"{name}: {cases[name]['speedup'][clock]:.2f} times faster, below the limit {limit}"
        for name in JUDGED
        if cases[name]["speedup"][clock] < limit
    ]
    decide(failures)


def show(cases: Mapping[str, Any], title: str) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    headings = ("random s", "length s", "faster", "CPU s", "CPU s", "faster", "padding", "padding")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, case in cases.items():
        cells = []
        for clock in ("wall", "cpu"):
            cells += [f"{case['seconds'][order][clock]:.2f}" for order in ORDERS]
            cells += [f"{case['speedup'][clock]:.2f}"]
        cells += [f"{100 * case['padding'][order]:.0f} %" for order in ORDERS]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    command(main, "lengths.py")
