"""What is measured of a trained fusion: accuracy, calibration, missing modalities, noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mmtransfer.benchmark.ensemble import Joined, predict
from mmtransfer.benchmark.examples import Examples
from mmtransfer.evaluation.metrics import Collected, compute_metrics
from mmtransfer.features import Features
from mmtransfer.tasks.base import Task

NOISE = (0.5, 1.0, 2.0)  # deviations of the noise, in those of the features


def subsets(modalities: list[str]) -> Iterator[tuple[str, ...]]:
    """All 2^M - 1 that are not empty, the whole first."""
    for size in range(len(modalities), 0, -1):
        yield from combinations(modalities, size)


def without(examples: Examples, kept: tuple[str, ...]) -> Examples:
    """The same rows with all other modalities absent."""
    found = {
        name: f if name in kept else Features(f.tokens, torch.zeros_like(f.mask))
        for name, f in examples.features.items()
    }
    return Examples(found, examples.targets)


def noisy(examples: Examples, name: str, level: float, scale: torch.Tensor) -> Examples:
    """Gaussian noise on the tokens of one modality; scale (D,) is the deviation of its features."""
    features = examples.features[name]
    noise = torch.randn(features.tokens.shape, generator=torch.Generator().manual_seed(0))
    tokens = (features.tokens + level * scale * noise).to(features.tokens.dtype)
    return Examples({**examples.features, name: Features(tokens, features.mask)}, examples.targets)


def score(
    model: Joined, examples: Examples, tasks: Mapping[str, Task], device: str = "cpu"
) -> dict[str, float]:
    """The main metric of each task, and the calibration error of those with classes."""
    logits = predict(model, examples, device)
    collected = Collected(logits, {name: examples.targets[name] for name in tasks})
    metrics = compute_metrics(tasks, collected)
    found = {n: metrics[n][task.score] for n, task in tasks.items() if task.score in metrics[n]}
    for name, task in tasks.items():
        known = task.labelled(examples.targets[name])
        z, y = logits[name][known], examples.targets[name][known]
        if not y.is_floating_point() and len(y):
            error = multiclass_calibration_error(z.softmax(1), y, z.shape[1], n_bins=15)
            found[f"{name} ece"] = float(error)
        found[f"{name} loss"] = metrics[name]["loss"]
    return found


def robustness(
    model: Joined,
    examples: Examples,
    tasks: Mapping[str, Task],
    statistics: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    device: str = "cpu",
) -> dict[str, Any]:
    """Scores with each subset of the modalities, and with noise on each, by level."""
    names = sorted(examples.features)
    whole = score(model, examples, tasks, device)
    found: dict[str, Any] = {"test": whole, "subsets": {}, "noise": {}}
    for kept in subsets(names):
        seen = examples if len(kept) == len(names) else without(examples, kept)
        found["subsets"][" + ".join(kept)] = score(model, seen, tasks, device)
    for name in names:
        levels = {"0.0": whole}
        for level in NOISE:
            disturbed = noisy(examples, name, level, statistics[name][1])
            levels[str(level)] = score(model, disturbed, tasks, device)
        found["noise"][name] = levels
    return found
