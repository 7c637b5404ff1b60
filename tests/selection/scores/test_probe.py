"""The probes' shortcuts against training without each row."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from mmtransfer.selection.arrays import one_hot
from mmtransfer.selection.scores.probe import (
    PENALTIES,
    directions,
    found_unseen,
    knn,
    leave_one_out,
    linear_probe,
)


@pytest.mark.parametrize(("rows", "width"), [(30, 4), (12, 40)])
def test_rows_are_predicted_as_by_a_regression_without_them(rows: int, width: int) -> None:
    generator = np.random.default_rng(width)
    classes = np.arange(rows) % 3
    features = generator.normal(3, 1, (rows, width)) + np.eye(3, width)[classes]
    left, values = directions(features - features.mean(0))
    targets = one_hot(classes)
    accuracies = []
    for penalty in PENALTIES:
        ridge = Ridge(penalty * float((values**2).mean()))
        expected = cross_val_predict(ridge, features, targets, cv=LeaveOneOut())
        found = leave_one_out(left, values, targets, penalty)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        expected += targets.mean(0) - (targets.sum(0) - targets) / (rows - 1)
        accuracies.append((expected.argmax(1) == classes).mean())
    assert linear_probe(features, classes) == pytest.approx(max(accuracies))


@pytest.mark.parametrize(("rows", "width"), [(30, 4), (12, 40)])
def test_unseen_rows_are_predicted_as_by_a_regression_on_the_others(rows: int, width: int) -> None:
    generator = np.random.default_rng(width)
    classes, truth = np.arange(rows) % 3, generator.integers(0, 3, 50)
    features, unseen = (
        generator.normal(3, 1, (len(k), width)) + np.eye(3, width)[k] for k in (classes, truth)
    )
    found = found_unseen(features, classes, unseen, truth)
    _, values = directions(features - features.mean(0))
    possible = []
    for penalty in PENALTIES:
        ridge = Ridge(penalty * float((values**2).mean())).fit(features, one_hot(classes))
        possible.append((ridge.predict(unseen).argmax(1) == truth).tolist())
    assert found.tolist() in possible
    assert found.mean() > 0.4


def test_what_tells_nothing_is_no_worse_than_the_largest_class() -> None:
    labels = np.repeat([0, 1, 2], [20, 20, 5])
    assert linear_probe(np.ones((45, 3)), labels) == pytest.approx(20 / 45)
    assert linear_probe(np.ones((40, 3)), np.arange(40) % 4) == pytest.approx(1 / 4)


def test_noise_is_not_learned() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(200, 300)), generator.integers(0, 10, 200)
    assert linear_probe(features, labels) < 0.25
    assert knn(features, labels) < 0.25


def test_neighbours_vote_as_in_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(80) % 2  # of two classes, five neighbours are never equally many
    features = generator.normal(size=(80, 3)) + labels[:, None]
    expected = cross_val_score(KNeighborsClassifier(5), features, labels, cv=LeaveOneOut()).mean()
    assert knn(features, labels) == pytest.approx(expected)


def test_of_equally_many_neighbours_the_nearer_win() -> None:
    features = np.array([[0.0], [1.0], [-1.5], [10.0], [-11.0]])
    assert knn(features[:3], ["a", "a", "b"], neighbours=2) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        knn(features, list("aabbc"), neighbours=0)
