"""What is measured of a trained fusion: accuracy, calibration, missing modalities, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmtransfer.benchmark.ensemble import Joined, predict
from mmtransfer.data.examples import Examples
from mmtransfer.evaluation.calibration import calibration_error
from mmtransfer.evaluation.metrics import Collected, compute_metrics
from mmtransfer.evaluation.robustness import by_noise, by_subset
from mmtransfer.tasks.base import Task


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
            found[f"{name} ece"] = calibration_error(z, y)
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

    def look(seen: Examples) -> dict[str, float]:
        return score(model, seen, tasks, device)

    kept = by_subset(look, examples)
    whole = next(iter(kept.values()))
    deviations = {name: deviation for name, (_, deviation) in statistics.items()}
    disturbed = by_noise(look, examples, deviations)
    return {
        "test": whole,
        "subsets": {" + ".join(names): scores for names, scores in kept.items()},
        "noise": {
            name: {"0.0": whole} | {str(level): scores for level, scores in levels.items()}
            for name, levels in disturbed.items()
        },
    }
