"""Selective prediction: answer where the model is sure, and leave the other rows to people.

Confidence is (N,), larger is surer; correct is (N,) bool.  Coverage is the share of rows that are
answered, the surest first; risk the share of errors among them (El-Yaniv & Wiener, JMLR 2010;
Geifman & El-Yaniv, NeurIPS 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def confidence_of(logits: Tensor) -> Tensor:
    """Probability (N,) of the predicted class."""
    return logits.double().softmax(1).max(1).values


def risk_coverage(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage 1/N ... 1 and risk, (N,) each.

    Rows of the same confidence come in no order: each counts as their mean, so that the curve does
    not depend on the order of the rows.
    """
    if confidence.shape != correct.shape or not len(correct):
        raise ValueError(
            f"confidence and correct must be as long and not empty, found "
            f"{tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    _, groups = torch.unique(-confidence, return_inverse=True)  # the surest are group 0
    wrong = (~correct.bool()).double()
    counts = torch.bincount(groups)
    means = torch.bincount(groups, wrong) / counts
    expected = means[groups.sort().values]  # (N,)
    number = torch.arange(1, len(correct) + 1, dtype=torch.float64)
    return number / len(correct), expected.cumsum(0) / number


def aurc(confidence: Tensor, correct: Tensor) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; smaller is better."""
    return float(risk_coverage(confidence, correct)[1].mean())


def excess_aurc(confidence: Tensor, correct: Tensor) -> float:
    """What of `aurc` a perfect order of the rows would save (Geifman et al., ICLR 2019)."""
    return aurc(confidence, correct) - aurc(correct.double(), correct)


def accuracy_at(
    confidence: Tensor, correct: Tensor, coverages: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 1.0)
) -> dict[float, float]:
    """Accuracy of the surest share of the rows, at least one row, by coverage in (0, 1]."""
    for coverage in coverages:
        if not 0 < coverage <= 1:
            raise ValueError(f"a coverage lies in (0, 1], found {coverage}")
    risk = risk_coverage(confidence, correct)[1]
    places = [max(1, round(coverage * len(risk))) - 1 for coverage in coverages]
    return {c: 1 - float(risk[k]) for c, k in zip(coverages, places, strict=True)}


def thinned(confidence: Tensor, correct: Tensor, points: int = 200) -> list[tuple[float, float]]:
    """At most so many points of the risk-coverage curve, the last one included."""
    coverage, risk = risk_coverage(confidence, correct)
    places = torch.linspace(0, len(risk) - 1, min(points, len(risk))).round().long()
    return list(zip(coverage[places].tolist(), risk[places].tolist(), strict=True))
