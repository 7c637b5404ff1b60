"""LogME: the evidence of a Bayesian linear model on the features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import Array, checked, one_hot, principal

#: of prior precision to noise precision, in units of the largest squared singular value: a target
#: that the features fit without any error would have infinite evidence
BOUNDS = (1e-10, 1e12)
GRID, REFINEMENTS = 65, 5


@register_score("logme")
def logme(features: Any, labels: Any) -> float:
    """Evidence per row of a Bayesian linear model of each class (You et al., ICML 2021).

    features (N, D), labels (N,).  With y the 0/1 target of a class, weights N(0, 1/α) and noise
    N(0, 1/β), it is the largest ln p(y | features, α, β) / N, mean over the classes.  A rotation of
    the features does not change it; a translation does.
    """
    rows, classes = checked(features, labels)
    left, values = principal(rows)
    targets = one_hot(classes)
    inside = (left.T @ targets) ** 2  # (R, C)
    # Rounding must not leave a negative rest where the features explain the target.
    outside = np.maximum((targets**2).sum(0) - inside.sum(0), 0.0)
    return float(evidence(values**2, inside, outside, len(rows)).mean())


def evidence(squares: Array, inside: Array, outside: Array, rows: int) -> Array:
    """(C,) largest evidence per row.

    squares: (R,) squared singular values of the features
    inside, outside: (R, C) and (C,) squared length of the targets along each of the R directions,
        and in none of them
    """
    # With ratio = β/α the noise variance has a closed form, so that one number is searched for:
    # unlike the usual fixed point this cannot stall, and it counts all of the D log terms.
    scale = squares.max(initial=0.0) or 1.0

    def per_row(logs: Array) -> Array:
        """(C, G) at ln(ratio · scale) (C, G)."""
        grown = np.exp(logs)[:, None, :] * (squares / scale)[None, :, None]  # (C, R, G)
        variance = ((inside.T[:, :, None] / (1 + grown)).sum(1) + outside[:, None]) / rows
        found: Array = -0.5 * (np.log(2 * math.pi * variance) + 1 + np.log1p(grown).sum(1) / rows)
        return found

    low = np.full(len(outside), math.log(BOUNDS[0]))
    high = np.full(len(outside), math.log(BOUNDS[1]))
    for _ in range(REFINEMENTS):
        logs = np.linspace(low, high, GRID, axis=1)
        found = per_row(logs)
        best = found.argmax(1)
        each = np.arange(len(best))
        low, high = logs[each, np.maximum(best - 1, 0)], logs[each, np.minimum(best + 1, GRID - 1)]
    largest: Array = found.max(1)
    return largest
