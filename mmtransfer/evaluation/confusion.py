"""Which classes are confused, and the rows where the model is most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix


def confusion_matrix(logits: Tensor, targets: Tensor) -> Tensor:
    """Rows (C, C) by true and by predicted class, from logits (N, C) and targets (N,)."""
    if not len(targets):
        return torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64)
    matrix: Tensor = multiclass_confusion_matrix(logits.argmax(1), targets, logits.shape[1])
    return matrix


def confused_pairs(matrix: Tensor, names: Sequence[Any], count: int = 20) -> list[dict[str, Any]]:
    """The most frequent errors: true class, predicted class, rows, share of the true class's rows.

    Of equally frequent ones that of the larger share comes first.
    """
    errors = matrix.clone().fill_diagonal_(0)
    totals = matrix.sum(1)
    found = [
        {
            "truth": names[t],
            "predicted": names[p],
            "rows": int(errors[t, p]),
            "share": float(errors[t, p] / totals[t]),
        }
        for t, p in errors.nonzero().tolist()
    ]
    return sorted(found, key=lambda pair: (-pair["rows"], -pair["share"]))[:count]


def worst_mistakes(
    logits: Tensor,
    targets: Tensor,
    names: Sequence[Any],
    rows: Tensor | None = None,
    count: int = 20,
) -> list[dict[str, Any]]:
    """The wrong rows whose label the model finds least likely, the worst first.

    rows: (N,) numbers of the rows, by default 0 to N - 1; logits and targets are of labelled ones
    -> row, truth, predicted, probability (of what is predicted), likelihood (of the truth)
    """
    numbers = torch.arange(len(targets)) if rows is None else rows
    shares = logits.double().softmax(1)
    best, predicted = shares.max(1)
    logs = logits.double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    wrong = (predicted != targets).nonzero().flatten()
    order = wrong[logs[wrong].argsort(stable=True)][:count]
    return [
        {
            "row": int(numbers[i]),
            "truth": names[int(targets[i])],
            "predicted": names[int(predicted[i])],
            "probability": float(best[i]),
            "likelihood": float(shares[i, targets[i]]),
        }
        for i in order.tolist()
    ]
