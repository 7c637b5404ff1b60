"""LogME is the evidence of the model that it speaks of, for few and for many features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from mmtransfer.selection.scores.evidence import logme


def dense(features: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """ln N(y; 0, I/β + FFᵀ/α) / N, from the N x N covariance."""
    rows = len(features)
    covariance = np.eye(rows) / beta + features @ features.T / alpha
    return float(multivariate_normal(np.zeros(rows), covariance).logpdf(target)) / rows


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (30, 30), (25, 80)])
def test_it_is_the_largest_dense_marginal_likelihood(rows: int, width: int) -> None:
    generator = np.random.default_rng(rows)
    labels = np.arange(rows) % 3
    features = generator.normal(0, 2, (rows, width)) + np.eye(3, width)[labels]
    best = []
    for k in range(3):
        target = (labels == k) * 1.0
        found = [
            minimize(
                lambda x, y=target: -dense(features, y, *np.exp(x)), start, method="Nelder-Mead"
            )
            for start in ([0.0, 0.0], [3.0, 2.0], [-2.0, 3.0], [8.0, 2.0])
        ]
        best.append(-min(f.fun for f in found))
    assert logme(features, labels) == pytest.approx(np.mean(best), abs=1e-4)


def test_more_features_than_rows_count_all_of_their_log_terms() -> None:
    # The usual fixed-point code gives 17.75 for data of this shape.
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(100, 512)), np.arange(100) % 10
    assert -0.3 < logme(features, labels) < 0.1


def test_a_perfect_fit_is_good_but_finite() -> None:
    labels = np.arange(30) % 3
    fitted = logme(np.eye(3)[labels], labels)
    noisy = logme(np.eye(3)[labels] + np.random.default_rng(0).normal(0, 0.2, (30, 3)), labels)
    assert noisy < fitted < 20


def test_a_factor_changes_nothing() -> None:
    generator = np.random.default_rng(1)
    features, labels = generator.normal(size=(40, 5)), np.arange(40) % 2
    for factor in (1e-6, 1e6):
        assert logme(features * factor, labels) == pytest.approx(logme(features, labels))
