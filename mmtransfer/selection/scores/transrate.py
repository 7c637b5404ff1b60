"""TransRate: how many bits the features take, less those within each class."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import Array, checked


@register_score("transrate")
def transrate(features: Any, labels: Any, distortion: float = 1e-4) -> float:
    """Coding rate of all features less the mean of the classes' (Huang et al., ICML 2022).

    features (N, D), labels (N,).  In nats, at a distortion of the features' own unit: a common
    factor changes it, a rotation or translation does not.
    """
    if not distortion > 0:
        raise ValueError(f"distortion must be greater than 0, found {distortion}")
    rows, classes = checked(features, labels)
    centred = rows - rows.mean(0)
    within = [coding_rate(centred[classes == k], distortion) for k in range(classes.max() + 1)]
    return coding_rate(centred, distortion) - float(np.mean(within))


def coding_rate(rows: Array, distortion: float) -> float:
    """½ ln det(I + fᵀf / (n ε)) of rows (n, D)."""
    n, d = rows.shape
    gram = rows @ rows.T if n < d else rows.T @ rows
    return float(0.5 * np.linalg.slogdet(np.eye(len(gram)) + gram / (n * distortion))[1])
