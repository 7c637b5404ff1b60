"""`mmtransfer benchmark fusion`: from a data directory and encoders to table, JSON and pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmtransfer.benchmark.cells import save_split
from mmtransfer.benchmark.ensemble import Recipe
from mmtransfer.benchmark.examples import encode_splits
from mmtransfer.benchmark.fusion import Plan, compare, members_of
from mmtransfer.benchmark.report import draw, markdown, removal, show, summarise
from mmtransfer.data.checksum import checksum
from mmtransfer.data.rows import Rows, load_rows, with_label_names
from mmtransfer.encoders.base import Encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, plain
from mmtransfer.training.surroundings import hardware, versions


def fusion_benchmark(
    data: str | None = None,
    encoders: dict[str, str] | None = None,
    tasks: dict[str, Any] | None = None,
    fusions: list[str] | None = None,
    output: Path = Path("runs/fusion"),
    width: int = 256,
    token_width: int = 128,
    dropout: float = 0.3,
    rates: list[float] = [3e-4, 1e-3, 3e-3],  # noqa: B006 - only read
    seeds: int = 5,
    tuning_seeds: int = 1,
    pooled: Recipe = Recipe(),  # noqa: B008 - jsonargparse reads it
    tokens: Recipe = Recipe(epochs=10),  # noqa: B008
    jobs: int = 0,
    cache: str | None = None,
    train_rows: int | None = None,
) -> None:
    """Compare fusions on the features of frozen encoders: accuracy, calibration, robustness.

    A run that was broken off goes on where it stopped.

    Args:
        data: directory with train, val and test parquet files, or hub id; by default embedded data
        encoders: specification by input column; by default tiny ones, pretrained on embedded data
        tasks: what to learn, by target column, the main one first
        fusions: names, by default all (see `mmtransfer fusions`), perhaps with options:
            "bottleneck?bottlenecks=8"
        output: directory for results, pictures and what is done so far
        width: of the fused vector
        token_width: of fusions on tokens
        dropout: in the fusion
        rates: learning rates that each fusion is tried at; validation decides
        seeds: repetitions of each fusion
        tuning_seeds: repetitions at each rate
        pooled: training of fusions on pooled vectors
        tokens: training of fusions on tokens
        jobs: processes, by default one per core
        cache: directory of the feature store
        train_rows: use only so many of the training rows
    """
    members = members_of(fusions, dropout=dropout)
    if data is None:
        if encoders or tasks:
            raise ValueError("encoders or tasks are given, but no data")
        splits, built, chosen = embedded()
    else:
        if not encoders or not tasks:
            raise ValueError(f"{data} needs encoders and tasks, by the columns that they are for")
        splits, built, chosen = load_rows(data), dict(encoders), dict(tasks)
    for split in ("train", "validation", "test"):
        if split not in splits:
            raise ValueError(f"there is no {split!r} split; found {sorted(splits) or 'nothing'}")
    digest = checksum(splits)
    for name in chosen:
        splits = {split: with_label_names(rows, name) for split, rows in splits.items()}
    if train_rows is not None:
        kept = splits["train"]
        splits = {**splits, "train": [kept[i] for i in range(min(train_rows, len(kept)))]}
    model = build_model(built, chosen, splits["train"], width=8)
    options = TrainingOptions(cache=cache, feature_precision="fp16")
    examples, marks = encode_splits(splits, model.encoders, model.tasks, options)
    mark = hashlib.blake2b(json.dumps(marks).encode(), digest_size=8).hexdigest()
    folder = output / f"features-{mark}"
    for split, found in examples.items():
        save_split(found, folder, split)
    plan = Plan(
        members,
        {name: task.config() for name, task in model.tasks.items()},
        tuple(sorted(model.encoders)),
        folder,
        mark,
        width,
        token_width,
        tuple(rates),
        seeds,
        tuning_seeds,
        pooled,
        tokens,
    )
    del model, examples
    results = compare(plan, output, jobs)
    if results["members"]:
        show(results)
        draw(results, output)
    about = {
        "versions": versions(),
        "hardware": hardware(),
        "data": {split: len(rows) for split, rows in splits.items()}
        | {"checksum": digest, "mark": mark},
        "plan": plain({k: v for k, v in asdict(plan).items() if k != "features"}),
    }
    summary: dict[str, Any] = {"summary": summarise(results), "removal": removal(results)}
    text = json.dumps(about | summary | plain(results), indent=1)
    (output / "results.json").write_text(text + "\n")
    if results["members"]:
        (output / "tables.md").write_text(markdown(summary["summary"], summary["removal"]))
    print(f"results.json, accuracy.png, subsets.png and noise.png are in {output}")
    if results["failures"]:
        raise SystemExit(1)


def embedded() -> tuple[Mapping[str, Rows], dict[str, str | Encoder], dict[str, Any]]:
    """New products of the embedded data, and tiny encoders pretrained on other products."""
    from mmtransfer.data.products import product_data
    from mmtransfer.training.run import run
    from mmtransfer.transfer.base import Phase, Strategy

    tasks = {"product": "classification", "category": "classification"}
    specs = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
    rates = {"image": 2e-3, "text": 3e-3, "audio": 4e-3}
    source, target = product_data(seed=0).values()
    built: dict[str, str | Encoder] = {}
    for name, spec in specs.items():
        model = build_model({name: spec}, tasks, source["train"], width=128)
        strategy = Strategy([Phase(5, rates[name], rates[name])])
        run(model, source, strategy, TrainingOptions(), title=f"pretraining {name}")
        built[name] = model.encoders[name]
    return target, built, tasks
