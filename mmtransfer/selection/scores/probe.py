"""Accuracies that simple classifiers reach on rows that they have not seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import Array, checked, one_hot, principal

#: weights of the penalty that are tried, in units of the mean squared singular value
PENALTIES = tuple(10.0**k for k in range(-4, 4))


@register_score("linear_probe")
def linear_probe(features: Any, labels: Any) -> float:
    """Leave-one-out accuracy of ridge regression on 0/1 targets, at its best penalty.

    features (N, D), labels (N,).  Exact and without a single refit: the error of a row that is left
    out follows from its leverage (Allen, Technometrics 1974).  A rotation, a translation or a
    common factor does not change it.  The shares of the classes count as known: without a row its
    class would look rarer than the others, and features that tell nothing would do worse than that.
    """
    rows, classes = checked(features, labels)
    left, values = principal(rows - rows.mean(0))
    targets = one_hot(classes)
    shares = (targets - targets.mean(0)) / (len(rows) - 1)  # less those without each row
    found = [leave_one_out(left, values, targets, penalty) + shares for penalty in PENALTIES]
    # Rounded, so that of equal classes the first wins, whatever the last digits.
    return max(float((p.round(9).argmax(1) == classes).mean()) for p in found)


def leave_one_out(left: Array, values: Array, targets: Array, penalty: float) -> Array:
    """(N, C) what is predicted of each row by the regression on all others.

    left, values: (N, R), (R,) of the centred features; the intercept is not penalised
    penalty: in units of the mean squared singular value
    """
    mean = (values**2).mean() if len(values) else 1.0
    shares = values**2 / (values**2 + penalty * mean)
    fitted = targets.mean(0) + left @ (shares[:, None] * (left.T @ targets))
    leverage = 1 / len(targets) + (left**2 * shares).sum(1)
    # A leverage of 1 means that nothing is known of the row without itself.
    apart = np.maximum(1 - leverage, 1e-9)[:, None]
    predicted: Array = targets - (targets - fitted) / apart
    return predicted


@register_score("knn")
def knn(features: Any, labels: Any, neighbours: int = 5) -> float:
    """Leave-one-out accuracy of the k nearest neighbours (Cover and Hart, 1967).

    features (N, D), labels (N,).  By Euclidean distance; of classes with equally many neighbours
    the one with the nearer ones wins.  A rotation, a translation or a common factor does not change
    it.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, found {neighbours}")
    from sklearn.neighbors import NearestNeighbors

    rows, classes = checked(features, labels)
    k = min(neighbours, len(rows) - 1)
    near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors()[1]  # (N, k)
    votes = np.zeros((len(rows), classes.max() + 1))
    each = np.arange(len(rows))
    for rank in range(k):
        votes[each, classes[near[:, rank]]] += 1 + (k - rank) / (k * (k + 1))  # below 1 in all
    return float((votes.argmax(1) == classes).mean())
