"""What the trainer costs: its throughput against a loop written by hand, on the same work.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --processes 2     # against DistributedDataParallel

The hand-written loop has the same model, batches, loss, clipping, fused AdamW and cosine as the
trainer, and nothing else.  Both take turns in one process, the first turn of each is dropped; the
ratio is the median over the pairs.  Exit code 1 when it falls below the limit.  The ratio of CPU
seconds stands beside it: on a CPU that others use as well it varies less.

`full` trains everything and decides.  `frozen` is for information: there the trainer reads its
feature store, and the hand-written loop takes pooled features that lie ready in memory.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import PartialState
from by_hand import Epoch, Rows, fit_by_hand, loader_of
from measuring import RESULTS, Seconds, spawn, timed, write_results
from rich.console import Console
from rich.table import Table

from mmtransfer import Phase, Strategy, Trainer, TrainingOptions, TransferModel
from mmtransfer.cli import command
from mmtransfer.data.collate import Collate
from mmtransfer.data.products import product_rows
from mmtransfer.data.samplers import TrainBatches
from mmtransfer.features import Batch, Features
from mmtransfer.training.processes import join_processes
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import end_processes

ENCODERS = {"image": "tiny-vit?width=128&layers=4", "text": "tiny-bert?width=128&layers=4"}
TASKS = {"product": "classification", "category": "classification"}
#: what the trainer and the loop by hand may differ by in the loss of an epoch, relative
SAME_LOSS = 0.02


def features_of(model: TransferModel, rows: Rows, batches: TrainBatches) -> Epoch:
    """Pooled features of frozen encoders, computed once and kept in memory."""
    collate = Collate(model.encoders, model.tasks)
    whole = collate(list(enumerate(rows)))
    with torch.inference_mode():
        model.eval()
        stored = {n: model.encode(n, whole.inputs[n], len(rows)).pool() for n in ENCODERS}
    stored = {n: Features(f.tokens.clone(), f.mask.clone()) for n, f in stored.items()}

    def epoch_of(epoch: int) -> Iterator[Batch]:
        batches.epoch = epoch
        for chosen in batches:
            index = torch.tensor(chosen)
            inputs = {n: Features(f.tokens[index], f.mask[index]) for n, f in stored.items()}
            yield Batch(inputs, {n: t[index] for n, t in whole.targets.items()}, index)

    return epoch_of


def measure(
    rows: Rows, phase: Phase, options: TrainingOptions, make: Callable[..., Epoch], repetitions: int
) -> dict[str, Any]:
    """Seconds of both, in turns; -> throughputs and ratios."""
    state = PartialState()
    template = build_model(ENCODERS, TASKS, rows, "gated", 256)
    place = (state.process_index, state.num_processes)
    batches = TrainBatches(len(rows), options.batch_size, options.seed, 1, *place)
    by_hand: list[Seconds] = []
    by_trainer: list[Seconds] = []
    losses: list[float] = []
    prepared = make(template, rows, batches)
    for _ in range(repetitions + 1):
        model = deepcopy(template).to(state.device)
        seconds, losses = timed(
            partial(fit_by_hand, model, prepared, phase, batches.steps, options)
        )
        by_hand.append(seconds)
        trainer = Trainer(deepcopy(template), rows, None, Strategy([phase]), options)
        seconds, history = timed(trainer.fit)
        by_trainer.append(seconds)
        trainer.close()
    if make is loader_of:
        last = history[-1]["train_loss"]
        if not math.isclose(losses[-1], last, rel_tol=SAME_LOSS):
            raise ArithmeticError(f"not the same work: losses {losses[-1]:.4f} and {last:.4f}")
    steps = phase.epochs * batches.steps
    pairs = list(zip(by_hand[1:], by_trainer[1:], strict=True))
    ratios = [hand.wall / trained.wall for hand, trained in pairs]
    return {
        "ratio": median(ratios),
        "ratios": ratios,
        "cpu_ratio": median(hand.cpu / trained.cpu for hand, trained in pairs),
        "by_hand": _throughput([hand.wall for hand, _ in pairs], steps, options),
        "trainer": _throughput([trained.wall for _, trained in pairs], steps, options),
    }


def _throughput(seconds: list[float], steps: int, options: TrainingOptions) -> dict[str, float]:
    step = median(seconds) / steps
    return {"rows_per_second": options.batch_size / step, "milliseconds_per_step": 1000 * step}


def decide(output: Path, limit: float) -> None:
    """Exit code 1 where full fine-tuning falls below the limit."""
    ratio = json.loads(output.read_text())["cases"]["full"]["ratio"]
    if ratio < limit:
        print(f"the ratio {ratio:.3f} is below the limit {limit}", file=sys.stderr)
        raise SystemExit(1)


def main(
    processes: int = 1,
    rows: int = 1280,
    batch_size: int = 64,
    epochs: int = 5,
    repetitions: int = 5,
    precision: str = "no",
    limit: float = 0.97,
    output: Path | None = None,
) -> None:
    """Compare the trainer with a loop written by hand.

    Args:
        processes: of training, on CPUs or GPUs of this machine
        rows: of one epoch, a multiple of the batch size
        batch_size: of one step over all processes
        epochs: of one turn
        repetitions: turns that count
        precision: "no" or "bf16"
        limit: smallest ratio of throughputs that passes
        output: JSON file, by default benchmarks/results/overhead[_N_processes].json
    """
    if rows % batch_size or batch_size % processes:
        raise ValueError(
            f"rows must be a multiple of batch_size, and that of processes, found {rows}, "
            f"{batch_size} and {processes}"
        )
    suffix = f"_{processes}_processes" if processes > 1 else ""
    output = output or RESULTS / f"overhead{suffix}.json"
    if processes > 1 and "LOCAL_RANK" not in os.environ:
        spawn(__file__, processes)
        decide(output, limit)
        return
    join_processes()
    data = product_rows("target/train", rows=rows)
    options = TrainingOptions(batch_size=batch_size, precision=precision, progress=False)
    with tempfile.TemporaryDirectory() as cache:
        options.cache = cache if processes == 1 else None
        full = Phase(epochs, lr=1e-3, encoder_lr=2e-4, warmup=0.0)
        cases = {
            "full": measure(data, full, options, loader_of, repetitions),
            "frozen": measure(
                data, Phase(10 * epochs, warmup=0.0), options, features_of, repetitions
            ),
        }
    if PartialState().is_main_process:
        settings = {"processes": processes, "precision": precision, "batch_size": batch_size}
        settings |= {"rows": rows, "epochs": epochs, "repetitions": repetitions, "limit": limit}
        results = {"settings": settings, "cases": cases}
        write_results(output, results)
        print_cases(cases, f"ms per step and rows per second, {processes=}")
    end_processes()
    if processes == 1:
        decide(output, limit)


def print_cases(cases: dict[str, Any], title: str) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("hand ms", "trainer ms", "hand /s", "trainer /s", "ratio", "range", "CPU"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, case in cases.items():
        both = (case["by_hand"], case["trainer"])
        cells = [f"{side['milliseconds_per_step']:.1f}" for side in both]
        cells += [f"{side['rows_per_second']:.0f}" for side in both]
        cells += [f"{case['ratio']:.3f}"]
        cells += [f"{min(case['ratios']):.3f}-{max(case['ratios']):.3f}"]
        cells += [f"{case['cpu_ratio']:.3f}"]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    command(main, "overhead.py")
