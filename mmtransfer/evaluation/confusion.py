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


def confused_pairs(
    logits: Tensor,
    targets: Tensor,
    names: Sequence[Any],
    rows: Tensor | None = None,
    count: int = 20,
    examples: int = 4,
) -> list[dict[str, Any]]:
    """The most frequent errors, with the rows of each where the model was surest.

    Of equally frequent ones that of the larger share comes first.
    rows: as in `worst_mistakes`
    -> truth, predicted, rows, share of the true class's rows, examples (row, probability,
        likelihood)
    """
    matrix = confusion_matrix(logits, targets)
    errors = matrix.clone().fill_diagonal_(0)
    totals = matrix.sum(1)
    pairs = sorted(
        errors.nonzero().tolist(), key=lambda p: (-errors[*p], -errors[*p] / totals[p[0]])
    )
    best, predicted = logits.double().softmax(1).max(1)
    found = []
    for t, p in pairs[:count]:
        inside = ((targets == t) & (predicted == p)).nonzero().flatten()
        surest = inside[best[inside].argsort(descending=True, stable=True)][:examples]
        found.append(
            {
                "truth": names[t],
                "predicted": names[p],
                "rows": int(errors[t, p]),
                "share": float(errors[t, p] / totals[t]),
                "examples": _rows(logits, targets, surest, rows),
            }
        )
    return found


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
    predicted = logits.argmax(1)
    logs = logits.double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    wrong = (predicted != targets).nonzero().flatten()
    order = wrong[logs[wrong].argsort(stable=True)][:count]
    found = _rows(logits, targets, order, rows)
    for i, mistake in zip(order.tolist(), found, strict=True):
        mistake |= {"truth": names[int(targets[i])], "predicted": names[int(predicted[i])]}
    return found


def _rows(
    logits: Tensor, targets: Tensor, order: Tensor, rows: Tensor | None
) -> list[dict[str, Any]]:
    """Number, probability of what is predicted, and likelihood of the label of some rows."""
    shares = logits[order].double().softmax(1)  # (K, C)
    return [
        {
            "row": i if rows is None else int(rows[i]),
            "probability": float(of_row.max()),
            "likelihood": float(of_row[targets[i]]),
        }
        for i, of_row in zip(order.tolist(), shares, strict=True)
    ]
