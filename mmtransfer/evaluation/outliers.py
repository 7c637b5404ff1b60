"""Scores of how unlike the training data a row is; larger is more unlike.

All take what the model already gives, logits (N, C) or fused vectors (N, D), and give (N,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc


def max_softmax(logits: Tensor) -> Tensor:
    """1 - the largest probability (Hendrycks & Gimpel, ICLR 2017)."""
    return 1 - logits.double().softmax(1).max(1).values


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T logsumexp(logits / T) (Liu et al., NeurIPS 2020)."""
    if not temperature > 0:
        raise ValueError(f"a temperature is above zero, found {temperature}")
    return -temperature * (logits.double() / temperature).logsumexp(1)


@dataclass(frozen=True)
class ClassGaussians:
    """Gaussians of the classes with one covariance (Lee et al., NeurIPS 2018).

    means: (K, D) of the K classes that have rows; whitening: (D, D), so that distances after it
        are Mahalanobis distances
    """

    means: Tensor
    whitening: Tensor

    @classmethod
    def fit(
        cls, vectors: Tensor, targets: Tensor, shrinkage: float | None = None
    ) -> ClassGaussians:
        """From vectors (N, D) and targets (N,) of labelled rows.

        shrinkage: share of the covariance that is replaced by its mean variance times identity, in
            [0, 1]; by default that of Ledoit & Wolf (2004), so that fewer rows than D will do
        Raises `ValueError` for no rows, or a covariance that cannot be inverted.
        """
        if not len(vectors):
            raise ValueError("Gaussians of classes are fitted on labelled rows, found none")
        exact = vectors.double()
        classes, which = targets.unique(return_inverse=True)
        means = torch.stack([exact[which == k].mean(0) for k in range(len(classes))])
        centred = exact - means[which]
        if shrinkage is None:
            fitted = LedoitWolf(assume_centered=True).fit(centred.numpy())
            covariance = torch.from_numpy(fitted.covariance_)
        else:
            if not 0 <= shrinkage <= 1:
                raise ValueError(f"shrinkage lies in [0, 1], found {shrinkage}")
            covariance = centred.T @ centred / len(centred)
            mean = covariance.diagonal().mean()
            identity = torch.eye(len(covariance), dtype=torch.float64)
            covariance = (1 - shrinkage) * covariance + shrinkage * mean * identity
        try:
            factor = torch.linalg.cholesky(covariance)
        except torch.linalg.LinAlgError as error:
            raise ValueError(
                f"the covariance of {len(vectors)} rows around their class means cannot be "
                f"inverted: more rows or more shrinkage than {shrinkage} is needed"
            ) from error
        identity = torch.eye(len(factor), dtype=torch.float64)
        return cls(means, torch.linalg.solve_triangular(factor, identity, upper=False).T)

    def score(self, vectors: Tensor) -> Tensor:
        """Squared Mahalanobis distance (N,) to the nearest class."""
        here, there = vectors.double() @ self.whitening, self.means @ self.whitening
        return torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist").min(1)[0] ** 2


def detection(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well scores (N,) of usual rows and (P,) of outliers are told apart.

    auroc: probability that an outlier scores higher
    fpr95: share of the outliers below the score that 95 % of the usual rows do not exceed (Liang et
        al., ICLR 2018)
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"scores of both are needed, found {len(inside)} and {len(outside)} rows")
    ranks = torch.cat([inside, outside]).double().unique(return_inverse=True)[1]
    scores = ranks.double() / max(1, int(ranks.max()))  # torchmetrics squashes others to [0, 1]
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    place = -(-95 * len(inside) // 100) - 1
    threshold = inside.double().sort().values[place]
    return {
        "auroc": float(binary_auroc(scores, truth)),
        "fpr95": float((outside.double() <= threshold).double().mean()),
    }
