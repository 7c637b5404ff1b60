"""LEEP, NLEEP and NCE against their sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmtransfer.selection.scores.conditional import leep, nce, nleep


def test_leep_is_its_sum_written_out() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 20)
    labels = np.arange(20) % 3
    total = 0.0
    for i, label in enumerate(labels):
        expected = 0.0
        for z in range(4):
            joint = probabilities[labels == label, z].sum()
            expected += joint / probabilities[:, z].sum() * probabilities[i, z]
        total += math.log(expected)
    assert leep(probabilities, labels) == pytest.approx(total / 20)


def test_source_classes_without_mass_change_nothing() -> None:
    generator = np.random.default_rng(1)
    probabilities, labels = generator.dirichlet(np.ones(3), 12), np.arange(12) % 2
    wider = np.insert(probabilities, 1, 0.0, axis=1)
    assert leep(wider, labels) == pytest.approx(leep(probabilities, labels))


def test_leep_of_certain_source_labels_is_nce() -> None:
    generator = np.random.default_rng(2)
    known, labels = generator.integers(0, 5, 50), generator.integers(0, 3, 50)
    assert leep(np.eye(6)[known], labels) == pytest.approx(nce(known, labels))


def test_a_source_that_knows_all_scores_0_and_one_that_knows_nothing_the_entropy() -> None:
    labels = list("aabbbc")
    entropy = -sum(p * math.log(p) for p in (2 / 6, 3 / 6, 1 / 6))
    assert nce(labels, labels) == pytest.approx(0.0)
    assert nce(["x"] * 6, labels) == pytest.approx(-entropy)
    assert leep(np.full((6, 4), 0.25), labels) == pytest.approx(-entropy)


def test_logits_are_refused() -> None:
    for wrong in (np.array([[2.0, -1.0], [0.5, 0.5]]), np.array([[2.0, 1.0], [0.5, 0.5]])):
        with pytest.raises(ValueError, match="sums from 1 to .*softmax of logits"):
            leep(wrong, [0, 1])


def test_nleep_sees_clusters_that_are_the_classes() -> None:
    generator = np.random.default_rng(3)
    labels = np.arange(90) % 3
    apart = 50 * np.eye(3, 6)[labels] + generator.normal(size=(90, 6))
    assert nleep(apart, labels) == pytest.approx(0.0, abs=1e-3)
    assert nleep(apart, generator.permutation(labels)) < -0.5
    assert nleep(1e-3 * apart, labels) == pytest.approx(0.0, abs=1e-3)
