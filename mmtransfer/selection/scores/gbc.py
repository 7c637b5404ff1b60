"""GBC: how little Gaussians of the classes overlap."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import Array, checked, class_means

SMALLEST_VARIANCE = 1e-4


@register_score("gbc")
def gbc(features: Any, labels: Any) -> float:
    """Overlap of the classes as Gaussians of diagonal covariance (Pándy et al., CVPR 2022).

    features (N, D), labels (N,).  Minus the sum of the Bhattacharyya coefficients of all pairs of
    classes, between -C (C - 1) and 0.  A translation does not change it; a rotation does.  No
    variance counts as less than 1e-4, so that classes of a single row are in order.
    """
    return _overlap(*_statistics(features, labels))


@register_score("gbc_spherical")
def gbc_spherical(features: Any, labels: Any) -> float:
    """Overlap of the classes as Gaussians of one variance each (Pándy et al., CVPR 2022).

    As `gbc`, with the mean of a class's variances in all D directions.  A rotation does not change
    it either, but where a variance is at its smallest.
    """
    means, variances = _statistics(features, labels)
    spread = np.broadcast_to(variances.mean(1, keepdims=True), means.shape)
    return _overlap(means, spread)


def _statistics(features: Any, labels: Any) -> tuple[Array, Array]:
    """Means and variances (C, D) of the classes."""
    rows, classes = checked(features, labels)
    means = class_means(rows, classes)
    variances = class_means((rows - means[classes]) ** 2, classes)
    return means, np.maximum(variances, SMALLEST_VARIANCE)


def _overlap(means: Array, variances: Array) -> float:
    logs = np.log(variances).sum(1)
    total = 0.0
    for i in range(1, len(means)):  # against all classes before it
        both = (variances[i] + variances[:i]) / 2
        apart = ((means[i] - means[:i]) ** 2 / both).sum(1) / 8
        apart += 0.5 * (np.log(both).sum(1) - (logs[i] + logs[:i]) / 2)
        total -= 2 * float(np.exp(-apart).sum())
    return total
