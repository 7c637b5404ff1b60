"""How far apart two sets of features lie: one domain and another, source and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmtransfer.selection.arrays import Array, as_features


def mmd(source: Any, target: Any, bandwidth: float | None = None, unbiased: bool = False) -> float:
    """Squared maximum mean discrepancy with kernel exp(-d² / 2h²) (Gretton et al., JMLR 2012).

    source (N, D), target (M, D).  0 for the same rows in any order, at most 2; the unbiased
    estimate has no term of a row with itself, is 0 on average for equal distributions and may be
    negative.

    bandwidth: h, by default the median distance of two of all rows
    """
    a, b = _pair(source, target)
    between = squared_distances(a, b)
    within = squared_distances(a, a), squared_distances(b, b)
    if bandwidth is None:
        upper = [block[np.triu_indices(len(block), 1)] for block in within]
        middle = float(np.median(np.sqrt(np.concatenate([*upper, between.ravel()]))))
        square = middle**2 or 1.0
    else:
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be greater than 0, found {bandwidth}")
        square = bandwidth**2
    same = 0.0
    for block in within:
        n, total = len(block), np.exp(-block / (2 * square)).sum()
        same += (total - n) / (n * (n - 1)) if unbiased else total / n**2
    return float(same - 2 * np.exp(-between / (2 * square)).mean())


def coral(source: Any, target: Any) -> float:
    """‖C_s - C_t‖²_F / (4 D²), C the covariances (Sun and Saenko, ECCV Workshops 2016).

    source (N, D), target (M, D).  Means do not count, nor does a common rotation.
    """
    a, b = _pair(source, target)
    width = a.shape[1]
    apart = np.cov(a, rowvar=False).reshape(width, width)
    apart = apart - np.cov(b, rowvar=False).reshape(width, width)
    return float((apart**2).sum() / (4 * width**2))


def frechet(source: Any, target: Any) -> float:
    """‖Δμ‖² + tr(C_s + C_t - 2 (C_s C_t)^½), of Gaussians with these moments (Dowson and Landau,
    Journal of Multivariate Analysis 1982).

    source (N, D), target (M, D).  The squared 2-Wasserstein distance of the Gaussians; a common
    rotation or translation does not change it.
    """
    a, b = _pair(source, target)
    centre_a, centre_b = a.mean(0), b.mean(0)
    root_a = np.linalg.qr(a - centre_a, mode="r") / np.sqrt(len(a) - 1)
    root_b = np.linalg.qr(b - centre_b, mode="r") / np.sqrt(len(b) - 1)
    # The trace of (C_s C_t)^½ is the nuclear norm of the product of their roots: no square root of
    # a matrix, which need not be real for rank-deficient covariances.
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = (root_a**2).sum() + (root_b**2).sum() - 2 * common
    return float(((centre_a - centre_b) ** 2).sum() + max(spread, 0.0))


def proxy_a(source: Any, target: Any, seed: int = 0) -> float:
    """2 (1 - 2 ε), ε the error of a linear classifier of the domain (Ben-David et al., NIPS 2006).

    source (N, D), target (M, D).  From 0 where it does no better than guessing to 2 where it tells
    all rows apart.  It is trained on a random half of each domain; ε is the mean of its errors on
    the other halves.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    a, b = _pair(source, target)
    generator = np.random.default_rng(seed)
    halves: list[list[Array]] = [[], []]
    for rows in (a, b):
        order, middle = generator.permutation(len(rows)), (len(rows) + 1) // 2
        halves[0].append(rows[order[:middle]])
        halves[1].append(rows[order[middle:]])
    scaler = StandardScaler().fit(np.concatenate(halves[0]))
    domain = np.repeat([0, 1], [len(rows) for rows in halves[0]])
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    classifier.fit(scaler.transform(np.concatenate(halves[0])), domain)
    errors = [
        (classifier.predict(scaler.transform(rows)) != k).mean() for k, rows in enumerate(halves[1])
    ]
    return float(max(0.0, 2 * (1 - 2 * np.mean(errors))))


def energy(source: Any, target: Any) -> float:
    """2 E‖X - Y‖ - E‖X - X'‖ - E‖Y - Y'‖ (Székely and Rizzo, 2013).

    source (N, D), target (M, D).  0 for the same rows in any order, in units of the features; a
    common rotation or translation does not change it.
    """
    a, b = _pair(source, target)
    between, in_a, in_b = (
        np.sqrt(squared_distances(x, y)).mean() for x, y in ((a, b), (a, a), (b, b))
    )
    return float(max(0.0, 2 * between - in_a - in_b))


DISTANCES: dict[str, Callable[..., float]] = {
    "proxy_a": proxy_a,
    "mmd": mmd,
    "energy": energy,
    "frechet": frechet,
    "coral": coral,
}


def squared_distances(a: Array, b: Array) -> Array:
    """(N, D), (M, D) -> (N, M)."""
    from scipy.spatial.distance import cdist

    found: Array = cdist(a, b, "sqeuclidean")
    return found


def _pair(source: Any, target: Any) -> tuple[Array, Array]:
    """Both as float64.  Raises `ValueError` for sets that have no distance."""
    a, b = as_features(source, "source"), as_features(target, "target")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"source and target must have features of one encoder: found widths {a.shape[1]} and "
            f"{b.shape[1]}"
        )
    return a, b
