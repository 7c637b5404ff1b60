"""GBC against the Bhattacharyya coefficient as an integral."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from mmtransfer.selection.scores.gbc import gbc, gbc_spherical


def test_one_direction_is_the_integral_of_the_root_of_both_densities() -> None:
    a, b = np.array([-1.0, 0.0, 2.0]), np.array([3.0, 4.0, 4.5, 6.0])
    grid = np.linspace(-40, 40, 400_001)
    densities = [norm(rows.mean(), rows.std()).pdf(grid) for rows in (a, b)]
    overlap = np.trapezoid(np.sqrt(densities[0] * densities[1]), grid)
    found = gbc(np.concatenate([a, b])[:, None], [0] * 3 + [1] * 4)
    assert found == pytest.approx(-2 * overlap, abs=1e-6)


def test_spheres_count_each_direction_in_their_volume() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = generator.normal(size=(40, 2)) * np.where(labels, 3.0, 1.0)[:, None]
    axis = np.linspace(-25, 25, 1001)
    points = np.stack(np.meshgrid(axis, axis), -1)
    densities = []
    for k in range(2):
        rows = features[labels == k]
        spread = rows.var(0).mean() * np.eye(2)
        densities.append(multivariate_normal(rows.mean(0), spread).pdf(points))
    overlap = np.sqrt(densities[0] * densities[1]).sum() * (axis[1] - axis[0]) ** 2
    assert gbc_spherical(features, labels) == pytest.approx(-2 * overlap, abs=1e-5)


def test_the_same_gaussians_overlap_wholly() -> None:
    rows = np.random.default_rng(1).normal(size=(9, 4))
    features, labels = np.concatenate([rows, rows, rows]), np.repeat([0, 1, 2], 9)
    assert gbc(features, labels) == pytest.approx(-6)
    assert gbc_spherical(features, labels) == pytest.approx(-6)
