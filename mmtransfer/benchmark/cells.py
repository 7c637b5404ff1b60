"""Cells of the fusion benchmark: a fusion, trained alike for some seeds."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmtransfer.benchmark.ensemble import Joined, Recipe, train
from mmtransfer.benchmark.scores import robustness, score
from mmtransfer.data.examples import Examples
from mmtransfer.fusion.base import build_fusion
from mmtransfer.tasks.base import Task


@dataclass(frozen=True)
class Cell:
    """A fusion, trained alike for some seeds.

    member: its label; spec: its name and options; width: of the fused vector
    modalities: that it is trained and tested with
    tuning: scored on validation rows only
    robust: also scored with noise and with fewer modalities
    features: directory of the encoded splits; mark: fingerprint of them
    """

    member: str
    spec: dict[str, Any]
    width: int
    recipe: Recipe
    seeds: tuple[int, ...]
    modalities: tuple[str, ...]
    tasks: dict[str, Any]
    features: str
    mark: str
    tuning: bool = False
    robust: bool = True

    @property
    def key(self) -> str:
        """Name of its file: a digest of all that its numbers depend on."""
        told = {k: v for k, v in asdict(self).items() if k not in ("member", "features")}
        return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def save_split(examples: Examples, features: Path, split: str) -> None:
    """Write an encoded split where cells find it, whole and pooled."""
    features.mkdir(parents=True, exist_ok=True)
    examples.save(features / f"{split}.safetensors")
    examples.pooled().save(features / f"{split}.pooled.safetensors")


@cache
def examples_of(features: str, split: str, pooled: bool) -> Examples:
    """An encoded split, kept by each process that works on it."""
    name = f"{split}.pooled" if pooled else split
    return Examples.load(Path(features) / f"{name}.safetensors")


def run_cell(cell: Cell, device: str = "cpu") -> list[dict[str, Any]]:
    """Train and score; -> one result per seed."""
    tasks = {name: Task.from_config(config) for name, config in cell.tasks.items()}
    features = examples_of(cell.features, "train", True).features
    widths = {name: features[name].width for name in cell.modalities}
    pooled = not build_fusion(cell.spec, widths, cell.width).uses_tokens

    def seen(split: str) -> Examples:
        return examples_of(cell.features, split, pooled).only(cell.modalities)

    started, cpu = time.perf_counter(), time.process_time()
    models = train(
        lambda: Joined(build_fusion(cell.spec, widths, cell.width), tasks),
        seen("train"),
        tasks,
        cell.seeds,
        cell.recipe,
        device,
        together=len(cell.seeds) > 1,
    )
    seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    results = []
    for seed, model in zip(cell.seeds, models, strict=True):
        result: dict[str, Any] = {
            "seed": seed,
            "validation": score(model, seen("validation"), tasks, device),
            "parameters": sum(p.numel() for p in model.parameters()),
            **{name: value / len(models) for name, value in seconds.items()},
        }
        if not cell.tuning:
            tested = seen("test")
            scale = examples_of(cell.features, "train", True).statistics()
            result |= (
                robustness(model, tested, tasks, scale, device)
                if cell.robust
                else {"test": score(model, tested, tasks, device)}
            )
        results.append(result)
    return results
