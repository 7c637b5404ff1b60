"""Boosting on rows of source and target: source rows that mislead lose their weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

TINY = 1e-10


class TrAdaBoost:
    """TrAdaBoost (Dai et al., ICML 2007) with the interface of scikit-learn.

    In each round a classifier learns from all rows by their weights. Source rows that it gets wrong
    lose weight, by a factor of `1 / (1 + sqrt(2 ln n / rounds))` for n source rows; target rows
    that it gets wrong gain, as in AdaBoost, by the error on the target. The classifiers of the last
    half of the rounds vote, each with the logarithm of that factor.

    With C classes target rows gain a further factor of C - 1, and a classifier counts if its error
    is below 1 - 1/C (SAMME, Zhu et al., 2009); for two classes it is the paper's algorithm.  Where
    no classifier of the last half counts, those of all rounds vote, and where none of these does
    either, the last half do, each alike: the papers leave this open.

    estimator: makes a classifier whose `fit` takes `sample_weight`, by default decision trees of
        depth 3 of scikit-learn
    rounds: how many
    seed: of the default classifier
    """

    def __init__(
        self, estimator: Callable[[], Any] | None = None, rounds: int = 20, seed: int = 0
    ) -> None:
        if rounds < 1:
            raise ValueError(f"TrAdaBoost needs at least 1 round, found {rounds}")
        self.estimator, self.rounds, self.seed = estimator, rounds, seed
        self.classes_ = np.empty(0)
        self.estimators_: list[Any] = []
        self.votes_: list[float] = []
        self.weights_ = np.empty(0)  # of the source's rows at the end, 1 in sum with the target's

    def fit(self, x: Any, y: Any, source_x: Any, source_y: Any) -> TrAdaBoost:
        """Target rows (m, D) and labels (m,), source rows (n, D) and labels (n,).

        Raises `ValueError` for rows and labels that do not fit one another.
        """
        sides = [(np.asarray(source_x), np.asarray(source_y)), (np.asarray(x), np.asarray(y))]
        for side, (rows, labels) in zip(("source", "target"), sides, strict=True):
            if rows.ndim != 2 or labels.shape != rows.shape[:1] or not len(rows):
                raise ValueError(
                    f"the {side} needs rows (N, D) and N labels, found {rows.shape} and "
                    f"{labels.shape}"
                )
        n = len(sides[0][0])
        rows = np.concatenate([rows for rows, _ in sides])
        self.classes_, labels = np.unique(
            np.concatenate([labels for _, labels in sides]), return_inverse=True
        )
        weights = np.concatenate([np.full(len(r), 0.5 / len(r)) for r, _ in sides])
        others = max(len(self.classes_) - 1, 1)
        fade = 1 / (1 + np.sqrt(2 * np.log(n) / self.rounds))
        self.estimators_, self.votes_ = [], []
        for _ in range(self.rounds):
            weights = weights / weights.sum()
            # 1 on average: a classifier with a penalty would take smaller ones for fewer rows.
            found = self._new().fit(rows, labels, sample_weight=weights * len(rows))
            wrong = found.predict(rows) != labels
            error = float(weights[n:] @ wrong[n:]) / max(float(weights[n:].sum()), TINY)
            error = max(error, TINY)
            counts = error < others / (others + 1) - TINY  # a guess would vote by its rounding
            vote = float(np.log((1 - error) / error) + np.log(others)) if counts else 0.0
            self.estimators_.append(found)
            self.votes_.append(vote)
            weights[:n] *= np.where(wrong[:n], fade, 1.0)
            weights[n:] *= np.exp(vote * wrong[n:])
        self.weights_ = weights[:n] / weights.sum()
        return self

    def _new(self) -> Any:
        if self.estimator is not None:
            return self.estimator()
        from sklearn.tree import DecisionTreeClassifier

        return DecisionTreeClassifier(max_depth=3, random_state=self.seed)

    def predict(self, x: Any) -> np.ndarray:
        """Rows (N, D) -> labels (N,)."""
        rows = np.asarray(x)
        votes = np.zeros((len(rows), len(self.classes_)))
        for found, vote in zip(self.estimators_, self._votes(), strict=True):
            if vote:
                votes[np.arange(len(rows)), found.predict(rows)] += vote
        answers: np.ndarray = self.classes_[votes.argmax(1)]
        return answers

    def _votes(self) -> np.ndarray:
        """(rounds,): what each classifier's answer counts."""
        own = np.array(self.votes_)
        last = np.arange(self.rounds) >= self.rounds // 2
        if own[last].any():
            return own * last
        return own if own.any() else last.astype(float)

    def score(self, x: Any, y: Any) -> float:
        """The share of rows whose label is right."""
        return float((self.predict(x) == np.asarray(y)).mean())
