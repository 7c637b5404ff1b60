"""All metrics of a classification, over all classes and for each.

Logits are (N, C) and targets (N,) of labelled rows, class numbers.  Classes without rows are left
out wherever a metric says nothing without them, and named in the table of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
    multiclass_precision,
    multiclass_recall,
)

from mmtransfer.evaluation.bootstrap import Interval, Statistic, bootstrap

AVERAGES: tuple[Literal["macro", "micro", "weighted"], ...] = ("macro", "micro", "weighted")
BY_CLASS = {
    "precision": multiclass_precision,
    "recall": multiclass_recall,
    "f1": multiclass_f1_score,
}
WITH_INTERVALS = ("accuracy", "balanced_accuracy", "f1_macro")


def labelled_rows(logits: Tensor, targets: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of the labelled rows.

    Raises `ValueError` for logits that are no numbers, with the first such row.
    """
    bad = ~torch.isfinite(logits).all(1)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} rows have logits that are not finite, first row {row}"
        )
    return logits[labelled], targets[labelled]


def classification_metrics(
    logits: Tensor, targets: Tensor, top: Sequence[int] = (3, 5)
) -> dict[str, float]:
    """Metrics by name, as torchmetrics and scikit-learn define them; none for no rows.

    accuracy, balanced_accuracy (mean recall of the classes that have rows), precision, recall and
    f1 as `_macro`, `_micro` and `_weighted`, `top_k` for k below C, mcc (Matthews), and auroc and
    average_precision, one class against the rest, macro over the classes that have rows.  In the
    macro averages of precision, recall and F1 a class without rows counts, with 0, only where it
    was predicted.
    """
    if not len(targets):
        return {}
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    found = {"accuracy": float((predicted == targets).double().mean())}
    recall = multiclass_recall(predicted, targets, classes, average="none")
    found["balanced_accuracy"] = float(recall[targets.unique()].double().mean())
    for name, metric in BY_CLASS.items():
        for average in AVERAGES:
            found[f"{name}_{average}"] = float(metric(predicted, targets, classes, average=average))
    for k in top:
        if k < classes:
            hits = multiclass_accuracy(logits, targets, classes, top_k=k, average="micro")
            found[f"top_{k}"] = float(hits)
    found["mcc"] = float(multiclass_matthews_corrcoef(predicted, targets, classes))
    curves = [c for c in one_against_rest(logits, targets).values() if c]
    for name in curves[0] if curves else ():
        found[name] = sum(curve[name] for curve in curves) / len(curves)
    return found


def one_against_rest(logits: Tensor, targets: Tensor) -> dict[int, dict[str, float]]:
    """auroc and average_precision of each class with rows; none where all rows are of it."""
    shares = logits.double().softmax(1)
    found: dict[int, dict[str, float]] = {}
    for c in targets.unique().tolist():
        of_class = targets == c
        found[c] = {}
        if not of_class.all():
            found[c] = {
                "auroc": float(binary_auroc(shares[:, c], of_class.long())),
                "average_precision": float(binary_average_precision(shares[:, c], of_class.long())),
            }
    return found


def per_class(logits: Tensor, targets: Tensor, names: Sequence[Any]) -> list[dict[str, Any]]:
    """One entry per class, in output order: rows and its metrics, None where it has no rows."""
    if len(names) != logits.shape[1]:
        raise ValueError(f"{len(names)} names of classes for {logits.shape[1]} outputs")
    counts = torch.bincount(targets, minlength=len(names)).tolist()
    table: list[dict[str, Any]] = [
        {"class": n, "rows": c} for n, c in zip(names, counts, strict=True)
    ]
    predicted, curves = logits.argmax(1), one_against_rest(logits, targets)
    for name, metric in BY_CLASS.items():
        values = [0.0] * len(names)
        if len(targets):
            values = metric(predicted, targets, len(names), average="none").tolist()
        for entry, value in zip(table, values, strict=True):
            entry[name] = value if entry["rows"] else None
    for c, entry in enumerate(table):
        for name in ("auroc", "average_precision"):
            entry[name] = curves.get(c, {}).get(name)
    return table


def resampled(logits: Tensor, targets: Tensor) -> Statistic:
    """Those of `WITH_INTERVALS` for many samples of the rows at once."""
    classes, predicted = logits.shape[1], logits.argmax(1)

    def statistic(rows: Tensor) -> Tensor:
        truth, guess = targets[rows], predicted[rows]  # (K, n)
        hit = (truth == guess).double()

        def counts(codes: Tensor, weights: Tensor) -> Tensor:
            found = torch.zeros(len(rows), classes, dtype=torch.float64)
            return found.scatter_add_(1, codes, weights)

        hits, rows_of = counts(truth, hit), counts(truth, torch.ones_like(hit))  # (K, C)
        claims = counts(guess, torch.ones_like(hit))
        there, seen = rows_of > 0, rows_of + claims > 0
        recall = hits / rows_of.clamp_min(1)
        f1 = 2 * hits / (rows_of + claims).clamp_min(1)
        return torch.stack([hit.mean(1), recall.sum(1) / there.sum(1), f1.sum(1) / seen.sum(1)], 1)

    return statistic


def metric_intervals(logits: Tensor, targets: Tensor, **options: Any) -> dict[str, Interval]:
    """Bootstrap intervals of accuracy, balanced accuracy and macro F1; options of `bootstrap`."""
    if not len(targets):
        return {}
    found = bootstrap(resampled(logits, targets), len(targets), **options)
    return dict(zip(WITH_INTERVALS, found, strict=True))
