"""Balance: what methods do for a modality that another one starves, against plain training.

    python benchmarks/balance.py
    python benchmarks/balance.py --tune    # the options below, chosen by validation rows

Audio-visual digits with whole pictures, which a small network has learned by heart after a few
epochs, and recordings in noise, which need many more: in plain training the loss is gone before the
sound encoder is any good.  Every member trains both encoders from scratch with the same rates,
epochs and seeds; what each method does to plain training is measured in pairs of equal seed:

- joint: test accuracy of the trained model
- image, audio: test accuracy of a logistic regression on the frozen encoder's pooled features,
  fitted on the training rows; `audio alone` and `image alone` are trained by themselves

Means over seeds with 95 % intervals of Student's t.  Exit code 1 unless enough methods raise the
weaker modality and the joint accuracy by more than the interval of the difference.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import RESULTS, decide, shared_directory, write_results
from rich.console import Console
from rich.table import Table

from mmtransfer import Phase, Strategy, Trainer, TrainingOptions, TransferModel
from mmtransfer.cli import command
from mmtransfer.data.av_digits import av_digits
from mmtransfer.data.collate import Collate
from mmtransfer.encoders.decoding import decode_audio, decode_image
from mmtransfer.evaluation.statistics import interval
from mmtransfer.methods.base import build_method
from mmtransfer.training.run import build_model

Rows = list[dict[str, Any]]
Spec = str | dict[str, Any] | None

ENERGY, SNR = 1.0, (-4.0, 8.0)
ENCODERS = {
    "image": "mlp?size=28&channels=1&widths=[128,64]",
    "audio": "spectrogram-cnn?rate=8000&n_mels=16&window_seconds=0.032&hop_seconds=0.02"
    "&widths=[16,32]",
}
WEAK = "audio"
LR = 4e-3  # plain training is as good as at half or double of it
KINDS = ("joint", *ENCODERS)
#: as `--tune` found them
METHODS: dict[str, Spec] = {
    "plain": None,
    "modality_dropout": {"name": "modality_dropout", "rate": 0.3},
    "auxiliary_heads": {"name": "auxiliary_heads", "weight": 0.5},
    "ogm_ge": {"name": "ogm_ge", "alpha": 0.3, "noise": 0.3},
    "agm": {"name": "agm", "alpha": 1.0},
    "gradient_blending": {"name": "gradient_blending", "share": 0.1, "every": 50},
    "mmpareto": {"name": "mmpareto", "gamma": 1.5},
}
#: what `--tune` tries
GRID: dict[str, dict[str, Sequence[Any]]] = {
    "modality_dropout": {"rate": (0.15, 0.3, 0.45)},
    "auxiliary_heads": {"weight": (0.5, 1.0, 2.0)},
    "ogm_ge": {"alpha": (0.3, 0.6, 1.0), "noise": (0.0, 0.3)},
    "agm": {"alpha": (0.3, 1.0, 3.0)},
    "gradient_blending": {"share": (0.1,), "every": (25, 50, 100)},
    "mmpareto": {"gamma": (1.0, 1.5)},
}
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SEED = 1000


class Plan(NamedTuple):
    """What all members have in common."""

    data: dict[str, Rows]
    epochs: int
    judged: str


class Member(NamedTuple):
    name: str
    method: Spec
    seed: int
    columns: tuple[str, ...] = tuple(ENCODERS)
    lr: float = LR


PLAN: Plan | None = None  # of this process


def load(shared: Path, sizes: Mapping[str, int]) -> dict[str, Rows]:
    """The first rows of each split, decoded and kept in memory."""
    splits = av_digits(shared / "data" / "mnist", shared / "data" / "fsdd", 0, ENERGY, SNR)
    found: dict[str, Rows] = {}
    for split, size in sizes.items():
        rows = (splits[split][i] for i in range(min(size, len(splits[split]))))
        found[split] = [
            {
                "image": np.asarray(decode_image(row["image"]).convert("L")),
                "audio": decode_audio(row["audio"]),
                "digit": row["digit"],
            }
            for row in rows
        ]
    return found


def begin(plan: Plan) -> None:
    """What a process does before its first member."""
    global PLAN
    torch.set_num_threads(1)
    PLAN = plan


def train(member: Member) -> dict[str, Any]:
    """Accuracies of one member, on the rows that are judged by."""
    assert PLAN is not None
    started = time.perf_counter()
    encoders = {name: ENCODERS[name] for name in member.columns}
    rows = PLAN.data["train"]
    tasks = {"digit": "classification"}
    model = build_model(encoders, tasks, rows, "concat", width=64, seed=member.seed)
    methods = [] if member.method is None else [build_method(member.method)]
    strategy = Strategy([Phase(PLAN.epochs, member.lr, member.lr)], methods)
    trainer = Trainer(
        model, rows, None, strategy, TrainingOptions(progress=False, seed=member.seed)
    )
    before = time.process_time()
    trainer.fit()
    cpu = time.process_time() - before
    judged = PLAN.data[PLAN.judged]
    accuracy = trainer.evaluate(judged, PLAN.judged)["digit"]["accuracy"]
    trainer.close()
    found = {"joint": accuracy} if len(encoders) > 1 else {}
    found |= {name: probe(model, name, rows, judged) for name in encoders}
    return {"seconds": time.perf_counter() - started, "training_cpu": cpu, **found}


def probe(model: TransferModel, name: str, rows: Rows, judged: Rows) -> float:
    """Accuracy of logistic regression on what the frozen encoder gives."""
    from sklearn.linear_model import LogisticRegression

    (x, y), (tested, truth) = (features(model, name, some) for some in (rows, judged))
    centre, scale = x.mean(0), x.std(0) + 1e-6
    fitted = LogisticRegression(C=0.1, max_iter=500).fit((x - centre) / scale, y)
    return float(fitted.score((tested - centre) / scale, truth))


def features(
    model: TransferModel, name: str, rows: Rows, size: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features (N, D) and labels (N,) of all rows."""
    collate, found = Collate({name: model.encoders[name]}, {}), []
    model.eval()
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        batch = collate(list(enumerate(dict(row) for row in chunk)))
        with torch.inference_mode():
            found.append(model.encode(name, batch.inputs[name], len(chunk)).pooled())
    return torch.cat(found).numpy(), np.array([row["digit"] for row in rows])


def train_all(members: Sequence[Member], plan: Plan, jobs: int) -> list[dict[str, Any]]:
    """In as many processes, each of one thread; -> what each member came to."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, begin, (plan,)) as pool:
        found = []
        for member, result in zip(members, pool.map(train, members), strict=True):
            scores = "  ".join(f"{k} {100 * result[k]:.1f}" for k in KINDS if k in result)
            print(
                f"{member.name} seed {member.seed}: {scores}  {result['seconds']:.0f} s", flush=True
            )
            found.append({"name": member.name, "method": member.method, "seed": member.seed})
            found[-1] |= result
    return found


def search(plan: Plan, jobs: int, seeds: int) -> None:
    """Print rates of plain training, then options of methods, with their joint accuracies."""
    numbers = range(TUNING_SEED, TUNING_SEED + seeds)
    members = [Member(f"lr {lr}", None, seed, lr=lr) for lr in RATES for seed in numbers]
    members += [
        Member(name, {"name": name, **dict(zip(grid, values, strict=True))}, seed)
        for name, grid in GRID.items()
        for values in itertools.product(*grid.values())
        for seed in numbers
    ]
    found: dict[str, list[float]] = {}
    for result in train_all(members, plan, jobs):
        found.setdefault(str(result["method"] or result["name"]), []).append(result["joint"])
    for options, scores in found.items():
        print(f"{100 * mean(scores):.1f}  {options}")


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By member and accuracy: mean, and mean and interval of the difference to plain training."""
    by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_name.setdefault(result["name"], {})[result["seed"]] = result
    plain = by_name["plain"]
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, by_seed in by_name.items():
        for kind in (k for k in KINDS if k in next(iter(by_seed.values()))):
            scores = [found[kind] for found in by_seed.values()]
            gains = [found[kind] - plain[seed][kind] for seed, found in by_seed.items()]
            summary.setdefault(name, {})[kind] = {
                "mean": mean(scores),
                "interval": interval(scores),
                "gain": mean(gains),
                "gain_interval": interval(gains),
            }
    return summary


def costs_of(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """CPU seconds of training by member, against those of plain training: median over seeds."""
    plain = {r["seed"]: r["training_cpu"] for r in results if r["name"] == "plain"}
    ratios: dict[str, list[float]] = {}
    for result in results:
        ratio = result["training_cpu"] / plain[result["seed"]]
        ratios.setdefault(result["name"], []).append(ratio)
    return {name: median(found) for name, found in ratios.items()}


def show(
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
    costs: Mapping[str, float],
    title: str,
) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for kind in KINDS:
        for heading in (kind, "gain"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("CPU", justify="right")
    for name, kinds in summary.items():
        cells = []
        for kind in KINDS:
            found = kinds.get(kind)
            if found is None:
                cells += ["", ""]
                continue
            cells.append(f"{100 * found['mean']:.1f} ± {100 * found['interval']:.1f}")
            gain = f"{100 * found['gain']:+.1f} ± {100 * found['gain_interval']:.1f}"
            cells.append("" if name == "plain" else gain)
        table.add_row(name, *cells, f"{costs[name]:.2f}")
    Console(width=120).print(table)


def main(
    seeds: int = 10,
    rows: int = 800,
    tested: int = 3000,
    epochs: int = 16,
    jobs: int = 2,
    required: int = 3,
    only: list[str] | None = None,
    tune: bool = False,
    shared: Path | None = None,
    output: Path = RESULTS / "balance.json",
) -> None:
    """Compare methods of balance with plain training.

    Args:
        seeds: members of each method
        rows: of the training split
        tested: rows of the test split
        epochs: of every member
        jobs: members that train at a time, on one thread each
        required: methods that must raise both accuracies
        only: methods to compare; all by default
        tune: instead, search the options of each method by validation rows
        shared: directory with real data, by default $MMTRANSFER_SHARED or ../shared
        output: JSON file
    """
    started = time.perf_counter()
    sizes = {"train": rows, "validation": 1000} if tune else {"train": rows, "test": tested}
    plan = Plan(load(shared or shared_directory(), sizes), epochs, [*sizes][1])
    if tune:
        search(plan, jobs, min(2, seeds))
        return
    chosen = {n: m for n, m in METHODS.items() if only is None or n == "plain" or n in only}
    members = [Member(n, method, seed) for seed in range(seeds) for n, method in chosen.items()]
    members += [Member(f"{n} alone", None, s, (n,)) for s in range(seeds) for n in ENCODERS]
    results = train_all(members, plan, jobs)
    summary, costs = summarise(results), costs_of(results)
    seconds = time.perf_counter() - started
    settings = {"seeds": seeds, "rows": rows, "tested": tested, "epochs": epochs, "lr": LR}
    settings |= {"energy": ENERGY, "snr": SNR, "encoders": ENCODERS, "methods": chosen}
    write_results(
        output,
        {
            "settings": settings,
            "seconds": seconds,
            "summary": summary,
            "costs": costs,
            "members": results,
        },
    )
    show(summary, costs, f"audio-visual digits, {seeds} seeds, {seconds / 60:.0f} min")
    better = [
        name
        for name in chosen
        if name != "plain"
        and all(
            summary[name][k]["gain"] > summary[name][k]["gain_interval"] for k in ("joint", WEAK)
        )
    ]
    failures = [f"only {', '.join(better) or 'no method'} raised both: {required} must"]
    decide(failures if len(better) < min(required, len(chosen) - 1) else [])


if __name__ == "__main__":
    command(main, "balance.py")
