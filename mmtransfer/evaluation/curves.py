"""Curves over training: epochs, numbers of labels, and what was forgotten of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a report reads curves without torch
    from torch import Tensor

COUNTED = ("rows", "loss")  # of a split's metrics, those that are no score
SHARES = ("accuracy", "auroc", "f1_macro")  # scores of 0 to 1 that are told in percent


def learning_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """`history` of a run's metrics -> one list per curve, with one value per epoch.

    phase, train_loss, and `task/metric` of the validation rows; None where an epoch has no value
    """
    flat = []
    for record in history:
        values = {name: record.get(name) for name in ("phase", "train_loss")}
        for task, metrics in record.get("validation", {}).items():
            values |= {f"{task}/{m}": v for m, v in metrics.items() if m != "rows"}
        flat.append({name: float(v) for name, v in values.items() if v is not None})
    names = list(dict.fromkeys(name for values in flat for name in values))
    return {name: [values.get(name) for values in flat] for name in names}


def forgetting(source: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """`metrics["source"]` of a run -> by task and score: before, after, and what was forgotten.

    Forgotten is before - after, negative where training helped (Chaudhry et al., ECCV 2018).
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task, before in source["before"].items():
        after = source["after"].get(task, {})
        known = [m for m in before if before[m] is not None and after.get(m) is not None]
        scores = [m for m in known if m not in COUNTED]
        found[task] = {
            m: {"before": before[m], "after": after[m], "forgotten": before[m] - after[m]}
            for m in scores
        }
    return found


@dataclass(frozen=True)
class LabelPoint:
    """Scores with so many labels, one per seed, their mean and the half width of its interval."""

    labels: int
    scores: tuple[float, ...]
    mean: float
    interval: float


def label_efficiency(
    train: Callable[[list[int], int], float],
    targets: Tensor,
    counts: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
) -> list[LabelPoint]:
    """Score against the number of labels.

    train: (row numbers that keep their label, seed) -> score on rows of its own
    targets: (N,) class numbers of the training rows
    counts: numbers of labels; of one seed the larger sets hold the smaller ones, and classes take
        turns, so that few labels show as many classes as they can
    Raises `ValueError` for a count that is not within the rows.
    """
    from mmtransfer.evaluation.statistics import interval

    for count in counts:
        if not 1 <= count <= len(targets):
            raise ValueError(f"a number of labels lies in 1 to {len(targets)}, found {count}")
    orders = {seed: in_turns(targets, seed) for seed in seeds}
    found = []
    for count in sorted(counts):
        scores = tuple(float(train(sorted(orders[s][:count]), s)) for s in seeds)
        found.append(LabelPoint(count, scores, sum(scores) / len(scores), interval(scores)))
    return found


def in_turns(targets: Tensor, seed: int) -> list[int]:
    """All row numbers in a random order in which the classes take turns while they last."""
    import torch

    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: dict[int, int] = {}
    rounds = {}
    for row in order:
        label = int(targets[row])
        rounds[row] = taken.get(label, 0)
        taken[label] = rounds[row] + 1
    return sorted(order, key=rounds.__getitem__)  # stable: within a round the order is random
