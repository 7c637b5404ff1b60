"""Distances against closed forms and loops written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import ortho_group, wasserstein_distance

from mmtransfer.selection.distances import DISTANCES, coral, energy, frechet, mmd, proxy_a


def two_sets(width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(width)
    return generator.normal(0, 1, (14, width)), generator.normal(0.5, 2, (11, width))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_set_is_at_no_distance_from_itself(name: str) -> None:
    a, _ = two_sets()
    shuffled = np.random.default_rng(0).permutation(a)
    assert DISTANCES[name](a, shuffled) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "proxy_a"])
def test_distances_are_symmetric_and_positive_and_turn_with_the_data(name: str) -> None:
    a, b = two_sets()
    distance = DISTANCES[name]
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(a, b) > 0
    turn = ortho_group.rvs(3, random_state=0)
    assert distance(a @ turn + 5, b @ turn + 5) == pytest.approx(distance(a, b))


@pytest.mark.parametrize("name", DISTANCES)
def test_input_of_any_float_is_only_read(name: str) -> None:
    a, b = (rows.astype(np.float32) for rows in two_sets())
    wide = DISTANCES[name](a.astype(np.float64), b.astype(np.float64))
    a.flags.writeable = b.flags.writeable = False
    assert DISTANCES[name](a, b) == pytest.approx(wide, rel=1e-5)
    assert math.isfinite(DISTANCES[name](np.zeros((4, 2)), np.ones((5, 2))))
    with pytest.raises(ValueError, match="widths 3 and 2"):
        DISTANCES[name](a, b[:, :2])
    with pytest.raises(ValueError, match=r"target must have shape \(N, D\).*found \(3,\)"):
        DISTANCES[name](a, b[0])


def kernel_sum(a: np.ndarray, b: np.ndarray, h: float, skip: bool) -> float:
    """Mean kernel over all pairs, without those of a row with itself."""
    total = count = 0.0
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if not (skip and i == j):
                total += math.exp(-sum((x - y) ** 2) / (2 * h * h))
                count += 1
    return total / count


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("bandwidth", [None, 1.7])
def test_mmd_is_its_sums_written_out(unbiased: bool, bandwidth: float | None) -> None:
    a, b = two_sets()
    h = bandwidth
    if h is None:
        both = [*a, *b]
        h = np.median([np.linalg.norm(x - y) for k, x in enumerate(both) for y in both[:k]])
    expected = kernel_sum(a, a, h, unbiased) + kernel_sum(b, b, h, unbiased)
    expected -= 2 * kernel_sum(a, b, h, False)
    assert mmd(a, b, bandwidth, unbiased) == pytest.approx(expected)


def test_the_unbiased_mmd_of_equal_distributions_is_0_on_average() -> None:
    generator = np.random.default_rng(0)
    found = [mmd(*generator.normal(size=(2, 12, 2)), 1.0, True) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    with pytest.raises(ValueError, match="greater than 0, found 0"):
        mmd(*two_sets(), bandwidth=0)


def test_frechet_is_that_of_the_gaussians() -> None:
    a, b = two_sets()
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected += np.trace(c_a + c_b - 2 * sqrtm(c_a @ c_b).real)
    assert frechet(a, b) == pytest.approx(expected)
    a, b = two_sets(1)
    assert frechet(a, b) == pytest.approx(
        (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    )
    wide = np.random.default_rng(0).normal(size=(6, 50))  # covariances of rank 5
    assert frechet(wide, wide + 2) == pytest.approx(200)


def test_coral_is_a_quarter_of_the_mean_square() -> None:
    a, b = two_sets()
    difference = np.cov(a, rowvar=False) - np.cov(b, rowvar=False)
    assert coral(a, b) == pytest.approx((difference**2).mean() / 4)
    assert coral(a, a + 7) == pytest.approx(0.0, abs=1e-12)


def test_proxy_a_goes_from_0_to_2() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 400, 3))
    assert proxy_a(a, b) < 0.3
    assert proxy_a(a, b + 100) == 2
    # Normals at distance 2 are told apart with error Φ(-1) at best.
    assert proxy_a(a, b + 2 * np.eye(3)[0]) == pytest.approx(2 * (1 - 2 * 0.1587), abs=0.15)
    assert proxy_a(a, b + 1, seed=3) == proxy_a(a, b + 1, seed=3)


def test_the_larger_domain_does_not_decide() -> None:
    generator = np.random.default_rng(1)
    assert proxy_a(generator.normal(size=(600, 2)), generator.normal(size=(30, 2))) < 0.6


def test_energy_in_one_direction_is_the_squared_difference_of_distributions() -> None:
    a, b = np.array([[0.0], [1.0], [4.0]]), np.array([[2.0], [3.0]])
    grid = np.linspace(-1, 5, 600_001)
    difference = [(rows <= grid).mean(0) for rows in (a, b)]
    expected = 2 * np.trapezoid((difference[0] - difference[1]) ** 2, grid)
    assert energy(a, b) == pytest.approx(expected, abs=1e-4)
    assert energy(a, a + 3) <= 2 * wasserstein_distance(a[:, 0], a[:, 0] + 3)
