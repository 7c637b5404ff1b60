"""TrAdaBoost against its paper, step by step, and on a source that partly misleads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from mmtransfer.transfer.tradaboost import TrAdaBoost


def problem(seed: int = 0, classes: int = 2):
    """Few target rows; half of the many source rows have labels of another rule."""
    rng = np.random.default_rng(seed)
    centres = 3 * np.eye(classes, 4)

    def rows(count, shift=0):
        labels = np.arange(count) % classes
        return centres[labels] + rng.normal(0, 1, (count, 4)), (labels + shift) % classes

    good, misled = rows(60), rows(60, 1)
    source = [np.concatenate(pair) for pair in zip(good, misled, strict=True)]
    return rows(12), source, rows(400)


def by_the_paper(x, y, source_x, source_y, rounds, test):
    """Figure 1 of the paper, labels 0 and 1."""
    n = len(source_x)
    rows, labels = np.concatenate([source_x, x]), np.concatenate([source_y, y])
    weights = np.array([0.5 / n] * n + [0.5 / len(x)] * len(x))
    beta, betas, answers = 1 / (1 + math.sqrt(2 * math.log(n) / rounds)), [], []
    for _ in range(rounds):
        p = weights / weights.sum()
        tree = DecisionTreeClassifier(max_depth=1, random_state=0)
        h = tree.fit(rows, labels, sample_weight=p)
        loss = np.abs(h.predict(rows) - labels)
        error = (weights[n:] * loss[n:]).sum() / weights[n:].sum()
        assert 0 < error < 0.5
        betas.append(error / (1 - error))
        weights = weights * np.concatenate([beta ** loss[:n], betas[-1] ** -loss[n:]])
        answers.append(h.predict(test))
    half = rounds // 2
    left = np.prod([b**-a for b, a in zip(betas[half:], answers[half:], strict=True)], axis=0)
    right = np.prod([b**-0.5 for b in betas[half:]])
    return (left >= right).astype(int), weights[:n] / weights.sum()


def test_two_classes_are_the_algorithm_of_the_paper():
    rng = np.random.default_rng(1)
    x, source = rng.normal(size=(40, 3)), rng.normal(size=(60, 3))
    y = (x.sum(1) + rng.normal(0, 0.7, 40) > 0).astype(int)
    source_y = (source[:, 0] > 0).astype(int)
    test = rng.normal(size=(200, 3))
    expected, weights = by_the_paper(x, y, source, source_y, 6, test)
    model = TrAdaBoost(lambda: DecisionTreeClassifier(max_depth=1, random_state=0), 6)
    found = model.fit(x, y, source, source_y)
    np.testing.assert_array_equal(found.predict(test), expected)
    np.testing.assert_allclose(found.weights_, weights, rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_source_rows_that_mislead_lose_their_weight_and_the_others_help(classes):
    gains = []
    for seed in range(5):
        (x, y), (source_x, source_y), (test_x, test_y) = problem(seed, classes)

        def linear():
            return LogisticRegression(max_iter=1000)

        boosted = TrAdaBoost(linear).fit(x, y, source_x, source_y)
        weights = boosted.weights_
        assert weights[:60].mean() > 2 * weights[60:].mean()
        rows, labels = np.concatenate([source_x, x]), np.concatenate([source_y, y])
        both = linear().fit(rows, labels)
        gains.append(boosted.score(test_x, test_y) - both.score(test_x, test_y))
    assert np.mean(gains) > 0.1


def test_it_is_the_same_each_time_and_keeps_the_labels():
    (x, y), (source_x, source_y), (test_x, _) = problem()
    names = np.array(["apple", "pear"])
    found = [
        TrAdaBoost().fit(x, names[y], source_x, names[source_y]).predict(test_x) for _ in range(2)
    ]
    assert set(found[0]) == {"apple", "pear"}
    np.testing.assert_array_equal(*found)


def test_rows_that_do_not_fit_are_an_error():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"the target needs rows .* found \(3, 2\) and \(2,\)"):
        TrAdaBoost().fit(x, [0, 1], x, [0, 1, 0])
    with pytest.raises(ValueError, match="at least 1 round, found 0"):
        TrAdaBoost(rounds=0)


def test_a_penalty_means_what_it_means_without_weights():
    """In the first round, rows of equal weight are rows without weights."""
    _, (x, y), _ = problem()
    found = TrAdaBoost(LogisticRegression, rounds=1).fit(x[:60], y[:60], x[60:], y[60:])
    plain = LogisticRegression().fit(x, y)
    np.testing.assert_allclose(found.estimators_[0].coef_, plain.coef_, atol=1e-4)


class Told:
    """Answers (N,) to rows that are their own numbers, whatever it is to learn."""

    def __init__(self, answers):
        self.answers = np.array(answers)

    def fit(self, x, y, sample_weight):
        return self

    def predict(self, x):
        return self.answers[x[:, 0].astype(int)]


def told(answers):
    """Makes one classifier after the other."""
    left = iter(answers)
    return lambda: Told(next(left))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # The first is right in 4 of 6 rows, the others by the weights it leaves behind in half.
        ([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], *2 * [[1, 1, 0, 0, 0, 1]]], [0, 0, 1, 1, 1, 0]),
        # Nobody is better than chance: the last half, each alike.
        ([*3 * [[0, 0, 0, 0, 0, 0]], *3 * [[1, 1, 1, 0, 0, 0]]], [1, 1, 1, 0, 0, 0]),
    ],
)
def test_where_the_last_half_is_no_better_than_chance_the_answers_are_not_constant(
    answers, expected
):
    x = np.arange(6.0)[:, None]
    y = np.array([0, 0, 1, 1, 0, 1])
    boosted = TrAdaBoost(told(answers), rounds=len(answers)).fit(x, y, x, y)
    assert not any(boosted.votes_[len(answers) // 2 :])
    np.testing.assert_array_equal(boosted.predict(x), expected)


@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_a_guess_has_no_vote_at_all(classes):
    """Rounding would make it a small one, for the answer or against it."""
    x = np.arange(float(classes))[:, None]
    y = np.arange(classes)
    boosted = TrAdaBoost(told(2 * [[0] * classes]), rounds=2).fit(x, y, x, y)
    assert boosted.votes_ == [0.0, 0.0]
