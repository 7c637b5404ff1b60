"""Whether probabilities mean what they say, and temperature scaling where they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmtransfer.temperature import Temperature

BINS = 15
LARGEST = 20.0  # temperature; the smallest is its inverse


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in [low, high): their number, mean confidence and accuracy."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


def reliability(logits: Tensor, targets: Tensor, bins: int = BINS) -> list[Bin]:
    """Accuracy by confidence, in bins of equal width, 1 in the last (DeGroot & Fienberg 1983).

    Logits (N, C), targets (N,).  Empty bins have neither confidence nor accuracy.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    confidence, predicted = logits.double().softmax(1).max(1)
    hit = (predicted == targets).double()
    which = (confidence * bins).long().clamp_max(bins - 1)
    counts = torch.bincount(which, minlength=bins)
    sums = [torch.bincount(which, values, minlength=bins) for values in (confidence, hit)]
    found = []
    for k, rows in enumerate(counts.tolist()):
        means = [float(total[k]) / rows if rows else None for total in sums]
        found.append(Bin(k / bins, (k + 1) / bins, rows, means[0], means[1]))
    return found


def calibration_error(logits: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: mean |confidence - accuracy| of the bins, weighed by their rows.

    Naeini et al., AAAI 2015; Guo et al., ICML 2017.  NaN for no rows.
    """
    gaps = [
        b.rows * abs(b.confidence - b.accuracy)
        for b in reliability(logits, targets, bins)
        if b.confidence is not None and b.accuracy is not None
    ]
    return sum(gaps) / len(targets) if len(targets) else math.nan


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Mean over rows, in nats."""
    return float(cross_entropy(logits.double(), targets))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature T at which `logits / T` are most likely (Guo et al., ICML 2017).

    Logits (N, C) and targets (N,) of rows that were not trained on.  T stays between 1/20 and 20:
    rows that are all right would ask for 0, and random ones for infinity.
    Raises `ValueError` for no rows.
    """
    if not len(targets):
        raise ValueError("a temperature is fitted on labelled rows, found none")
    exact = logits.double()

    def loss(log_inverse: float) -> float:
        return float(cross_entropy(exact * math.exp(log_inverse), targets))

    # Convex in 1/T, so it has one valley in its logarithm, too.
    bound = math.log(LARGEST)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return math.exp(-float(found.x))


def fit_temperatures(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Temperature:
    """The temperatures of tasks from logits and targets of labelled rows, none without rows.

    `Temperature.save` puts them beside a saved model, whose predictions then are calibrated.
    """
    return Temperature({n: fit_temperature(z, targets[n]) for n, z in logits.items() if len(z)})
