"""Scores in closed form and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score, roc_curve

from mmtransfer.evaluation.outliers import ClassGaussians, detection, energy, max_softmax


def test_energy_and_softmax_in_closed_form() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]])
    assert energy(logits).tolist() == pytest.approx([-math.log(3), -math.log(4)])
    assert max_softmax(logits).tolist() == pytest.approx([2 / 3, 1 / 2])
    expected = [-2 * float((row / 2).exp().sum().log()) for row in logits]
    assert energy(logits, 2.0).tolist() == pytest.approx(expected)
    shifted = energy(logits + 5) - energy(logits)  # of the size of the logits, unlike softmax
    assert shifted.tolist() == pytest.approx([-5, -5], abs=1e-6)
    with pytest.raises(ValueError, match="found 0"):
        energy(logits, 0)


def test_the_distance_is_that_of_scikit_learn_to_the_nearest_class() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (200,), generator=generator) * 2  # classes 1 and 3 have no rows
    vectors = torch.randn(200, 4, generator=generator) + 3 * targets[:, None]
    found = ClassGaussians.fit(vectors, targets, shrinkage=0.0)
    means = [vectors[targets == c].mean(0) for c in (0, 2, 4)]
    centred = torch.stack([v - means[t // 2] for v, t in zip(vectors, targets, strict=True)])
    reference = EmpiricalCovariance(assume_centered=True).fit(centred.double().numpy())
    new = torch.randn(30, 4, generator=generator) * 4
    distances = [reference.mahalanobis((new - mean).double().numpy()) for mean in means]
    expected = torch.from_numpy(np.min(distances, axis=0))
    torch.testing.assert_close(found.score(new), expected, rtol=1e-5, atol=1e-5)


def test_with_shrinkage_fewer_rows_than_dimensions_will_do() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, targets = torch.randn(10, 30, generator=generator), torch.arange(10) % 2
    assert ClassGaussians.fit(vectors, targets).score(vectors).isfinite().all()
    # Full shrinkage is the Euclidean distance, in the mean variance.
    whole = ClassGaussians.fit(vectors, targets, shrinkage=1.0)
    means = torch.stack([vectors[targets == c].mean(0) for c in (0, 1)])
    variance = float((vectors - means[targets]).square().mean())
    expected = torch.cdist(vectors, means).square().min(1).values / variance
    torch.testing.assert_close(whole.score(vectors).float(), expected)
    with pytest.raises(ValueError, match="more shrinkage than 0.0"):
        ClassGaussians.fit(vectors, targets, shrinkage=0.0)
    with pytest.raises(ValueError, match="found 2"):
        ClassGaussians.fit(vectors, targets, shrinkage=2)
    with pytest.raises(ValueError, match="found none"):
        ClassGaussians.fit(vectors[:0], targets[:0])


def test_detection_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(200, generator=generator) * 10
    outside = torch.randn(80, generator=generator) * 10 + 15
    outside[:5] = inside[:5]  # ties
    found = detection(inside, outside)
    truth, scores = [0] * 200 + [1] * 80, torch.cat([inside, outside])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    false, true, _ = roc_curve([1 - t for t in truth], -scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(
        min(f for f, t in zip(false, true, strict=True) if t >= 0.95)
    )
    with pytest.raises(ValueError, match="found 200 and 0 rows"):
        detection(inside, outside[:0])
