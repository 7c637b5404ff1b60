"""H-score: how much of the features' variance lies between the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import checked, class_means, principal


@register_score("h_score")
def h_score(features: Any, labels: Any) -> float:
    """Trace of cov(f)⁺ cov(E[f | y]) (Bao et al., ICIP 2019).

    features (N, D), labels (N,).  No invertible affine map of the features changes it.  It lies
    between 0 and C - 1, and grows to it where D nears N.
    """
    rows, classes = checked(features, labels)
    left, _ = principal(rows - rows.mean(0))
    means = class_means(left, classes)
    return float((np.bincount(classes)[:, None] * means**2).sum())


@register_score("regularised_h_score")
def regularised_h_score(features: Any, labels: Any) -> float:
    """H-score with a shrunken covariance, for few rows (Ibrahim et al., ECML PKDD 2022).

    features (N, D), labels (N,).  Ledoit and Wolf's covariance, and the result times one minus its
    shrinkage.  A rotation, a translation or a common factor does not change it.
    """
    from sklearn.covariance import ledoit_wolf

    rows, classes = checked(features, labels)
    centred = rows - rows.mean(0)
    if not centred.any():
        return 0.0
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    means = class_means(centred, classes)
    between = means * np.sqrt(np.bincount(classes) / (len(rows) - 1))[:, None]
    solved = np.linalg.lstsq(covariance, between.T, rcond=None)[0]
    return float((1 - shrinkage) * (between.T * solved).sum())
