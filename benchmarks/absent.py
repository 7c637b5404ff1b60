"""What a missing modality saves: time in the audio encoder when half of the recordings are missing.

    python benchmarks/absent.py

The rows of a batch that lack a modality never reach its encoder, so half of the recordings should
cost half of the time.  KWT-1 with its real weights on the recordings of the retail set, or a small
wav2vec 2.0 on the embedded data where those are not at hand.  Both sides take turns in one process,
on the same batches; `frozen` is the forward pass without gradients, `trained` forward and backward.
Decided by CPU seconds on a CPU, by the clock on a GPU.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, decide, in_turns, ratio, shared_directory, typical, write_results
from rich.console import Console
from rich.table import Table

from mmtransfer import Encoder, TransferModel, build_encoder, build_fusion, build_task
from mmtransfer.cli import command
from mmtransfer.data.collate import Collate
from mmtransfer.data.products import product_rows
from mmtransfer.data.rows import column, load_rows
from mmtransfer.features import Inputs

MISSING = 0.5


def sounds_and_encoder(rows: int, shared: Path) -> tuple[list[Any], Encoder, str]:
    """Recordings, an encoder for them, and where they come from."""
    data, weights = shared / "data" / "retail", shared / "models" / "kwt1-speech-commands"
    if data.is_dir() and weights.is_dir():
        values = [v for v in column(load_rows(data)["train"], "audio") if v is not None]
        return values[:rows], build_encoder(f"kwt:{weights}"), "KWT-1 on the retail set"
    made = product_rows("source/train", rows=2 * rows)  # some have no recording
    values = [row["audio"] for row in made if row["audio"] is not None]
    return values[:rows], build_encoder("tiny-wav2vec2"), "tiny-wav2vec2 on embedded data"


def encode_all(model: TransferModel, batches: list[Any], size: int, trained: bool) -> None:
    """All batches through the encoder as the model runs it, scattering of the result included."""
    model.train(trained).requires_grad_(trained)
    with torch.set_grad_enabled(trained):
        for inputs in batches:
            features = model.encode("audio", inputs, size)
            if trained:
                features.pooled().square().mean().backward()
    model.zero_grad(set_to_none=True)


def main(
    rows: int = 256,
    batch_size: int = 32,
    turns: int = 5,
    limit: float = 0.45,
    shared: Path | None = None,
    output: Path = RESULTS / "absent.json",
) -> None:
    """Compare the audio encoder's time on all recordings and on a random half of them.

    Args:
        rows: with a recording, a multiple of the batch size
        batch_size: rows of a batch, with and without a recording
        turns: that count
        limit: smallest share of the time that must be saved
        shared: directory with real data and weights, by default $MMTRANSFER_SHARED or ../shared
        output: JSON file
    """
    values, encoder, what = sounds_and_encoder(rows, shared or shared_directory())
    if len(values) % batch_size:
        raise ValueError(f"rows must be a multiple of {batch_size}, found {len(values)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fusion = build_fusion("concat", {"audio": encoder.width}, 8)
    task = build_task({"name": "classification", "classes": [0, 1]})
    model = TransferModel({"audio": encoder}, fusion, {"label": task}).to(device)
    keep = np.random.default_rng(0).permutation(len(values)) >= MISSING * len(values)
    halved = [value if kept else None for value, kept in zip(values, keep, strict=True)]
    batches: dict[str, list[Inputs | None]] = {}
    for side, chosen in (("all", values), ("half", halved)):
        numbered = [(i, {"audio": value}) for i, value in enumerate(chosen)]
        collate = Collate(model.encoders, {})
        chunks = [numbered[i : i + batch_size] for i in range(0, len(values), batch_size)]
        batches[side] = [collate(chunk).to(device).inputs.get("audio") for chunk in chunks]  # type: ignore[misc]
    read_of = {side: elements(found) for side, found in batches.items()}
    cases: dict[str, Any] = {}
    for name, trained in (("frozen", False), ("trained", True)):
        sides = {s: partial(encode_all, model, b, batch_size, trained) for s, b in batches.items()}
        found = in_turns(sides, turns)
        saved = {clock: 1 - ratio(found["half"], found["all"], clock) for clock in ("wall", "cpu")}
        seconds = {side: typical(found[side]) for side in sides}
        cases[name] = {"saved": saved, "seconds": seconds}
    settings = {"what": what, "rows": len(values), "batch_size": batch_size, "turns": turns}
    settings |= {"missing": MISSING, "input_missing": 1 - read_of["half"] / read_of["all"]}
    write_results(output, {"settings": settings, "limit": limit, "cases": cases})
    show(cases, f"{what}, half of {len(values)} recordings missing")
    clock = "cpu" if device.type == "cpu" else "wall"
    failures = [
        f"{name}: {case['saved'][clock]:.3f} of the time is saved, below the limit {limit}"
        for name, case in cases.items()
        if case["saved"][clock] < limit
    ]
    decide(failures)


def elements(batches: list[Inputs | None]) -> float:
    """What the encoder has to read, in elements of its inputs."""
    return sum(float(v.numel()) for b in batches if b is not None for v in b.values.values())


def show(cases: dict[str, Any], title: str) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("all s", "half s", "saved", "all CPU s", "half CPU s", "saved CPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, case in cases.items():
        cells = []
        for clock in ("wall", "cpu"):
            cells += [f"{case['seconds'][side][clock]:.2f}" for side in ("all", "half")]
            cells += [f"{100 * case['saved'][clock]:.1f} %"]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    command(main, "absent.py")
