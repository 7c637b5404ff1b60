"""Accuracies that simple classifiers reach on rows that they have not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import Array, Numbers, checked, one_hot

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
    return float(found_without(*checked(features, labels)).mean())


def found_without(rows: Array, classes: Numbers) -> NDArray[np.bool_]:
    """(N,) which rows the regression on all others would have told, at the best penalty."""
    left, values = directions(rows - rows.mean(0))
    return _best(left, values, classes)[1]


def found_unseen(rows: Array, classes: Numbers, unseen: Array, truth: Numbers) -> NDArray[np.bool_]:
    """(M,) which unseen rows (M, D) the regression on rows (N, D) tells.

    The penalty is the best one for the rows (N, D) themselves, each left out.
    """
    centre = rows.mean(0)
    left, values = directions(rows - centre)
    penalty, _ = _best(left, values, classes)
    targets = one_hot(classes)
    inner = (left.T @ targets) / (values**2 + penalty * _unit(values))[:, None]
    weights = (rows - centre).T @ (left @ inner)  # (D, C)
    predicted = targets.mean(0) + (unseen - centre) @ weights
    correct: NDArray[np.bool_] = predicted.round(9).argmax(1) == truth
    return correct


def directions(rows: Array) -> tuple[Array, Array]:
    """Left singular vectors (N, R) and singular values (R,), but for very small ones.

    Out of the smaller Gram matrix, several times faster than a singular value decomposition: what
    that loses of the small ones counts for nothing beside the penalties.
    """
    tall = len(rows) > rows.shape[1]
    squares, vectors = np.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    real = squares > 1e-10 * max(squares[-1], np.finfo(np.float64).tiny)
    values = np.sqrt(squares[real])
    vectors = vectors[:, real]
    return (rows @ vectors / values if tall else vectors), values


def _best(left: Array, values: Array, classes: Numbers) -> tuple[float, NDArray[np.bool_]]:
    """The penalty that tells the most rows that are left out, and which these are."""
    targets = one_hot(classes)
    shares = (targets - targets.mean(0)) / (len(classes) - 1)  # less those without each row
    found = []
    for penalty in PENALTIES:
        predicted = leave_one_out(left, values, targets, penalty) + shares
        # Rounded, so that of equal classes the first wins, whatever the last digits.
        found.append((penalty, predicted.round(9).argmax(1) == classes))
    return max(found, key=lambda pair: int(pair[1].sum()))


def _unit(values: Array) -> float:
    return float((values**2).mean()) if len(values) else 1.0


def leave_one_out(left: Array, values: Array, targets: Array, penalty: float) -> Array:
    """(N, C) what is predicted of each row by the regression on all others.

    left, values: (N, R), (R,) of the centred features; the intercept is not penalised
    penalty: in units of the mean squared singular value
    """
    shares = values**2 / (values**2 + penalty * _unit(values))
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
