"""Scores of how well the classes of the source tell those of the target: LEEP, NLEEP and NCE."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mmtransfer.registry import register_score
from mmtransfer.selection.arrays import Array, as_classes, as_features, checked, one_hot


@register_score("leep")
def leep(probabilities: Any, labels: Any) -> float:
    """Log-likelihood through the source's classes, LEEP (Nguyen et al., ICML 2020).

    probabilities (N, Z): of the source's classes, for the target's rows; labels (N,).  Source
    classes without any mass count for nothing.  At most 0.
    Raises `ValueError` for probabilities that are negative or do not add up to 1 (within 1e-2).
    """
    given = as_features(probabilities, "probabilities", least=1)
    classes = as_classes(labels, len(given))
    if given.min() < 0 or abs(given.sum(1) - 1).max() > 1e-2:
        raise ValueError(
            "probabilities must be at least 0 and add up to 1 in each row, found values from "
            f"{given.min():.4g} on and sums from {given.sum(1).min():.4g} to "
            f"{given.sum(1).max():.4g}: take the softmax of logits first"
        )
    return _leep(given / given.sum(1, keepdims=True), one_hot(classes))


def _leep(probabilities: Array, targets: Array) -> float:
    joint = targets.T @ probabilities  # (C, Z)
    mass = joint.sum(0)
    conditional = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    expected = (probabilities @ conditional.T)[targets.astype(bool)]  # (N,)
    return float(np.log(expected).mean())


@register_score("nleep")
def nleep(
    features: Any, labels: Any, variance: float = 0.8, per_class: int = 5, seed: int = 0
) -> float:
    """LEEP on clusters of the features instead of source classes (Li et al., CVPR 2021).

    features (N, D), labels (N,).  The clusters are Gaussians, `per_class` for each class, fitted on
    the principal components that have this share of the variance.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows, classes = checked(features, labels)
    targets = one_hot(classes)
    if not np.ptp(rows, 0).any():
        return _leep(np.ones((len(rows), 1)), targets)
    reduced = PCA(variance, svd_solver="full").fit_transform(rows)
    # So that what the mixture adds to each variance is small for features of any size.
    reduced = reduced / reduced.std(0).max()
    count = min(per_class * targets.shape[1], len(np.unique(reduced, axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = GaussianMixture(count, random_state=seed, reg_covar=1e-4).fit(reduced)
    return _leep(mixture.predict_proba(reduced), targets)


@register_score("nce")
def nce(source_labels: Any, labels: Any) -> float:
    """Negative conditional entropy of the labels given source labels (Tran et al., ICCV 2019).

    source_labels (N,), say the source class that is most probable for each row; labels (N,).  In
    nats, at most 0.
    """
    known = as_classes(source_labels, what="source_labels")
    classes = as_classes(labels, len(known))
    if not len(known):
        raise ValueError("source_labels and labels must have at least one row, found none")
    joint = one_hot(classes).T @ one_hot(known) / len(known)  # (C, Z)
    ratio = joint / joint.sum(0)
    return float((joint[joint > 0] * np.log(ratio[joint > 0])).sum())
