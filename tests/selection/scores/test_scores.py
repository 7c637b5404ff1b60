"""What all scores have in common: known values, what leaves them unchanged, odd input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import ortho_group
from sklearn.datasets import load_digits, load_iris

from mmtransfer.registry import scores

#: on scikit-learn's raw features; leep on their softmax, nce on their argmax
KNOWN = {
    "h_score": (1.191899, 5.917909),
    "regularised_h_score": (1.177842, 5.851433),
    "transrate": (0.589405, 50.279312),
    "logme": (-0.160060, 0.270278),
    "leep": (-0.985570, -1.791575),
    "nce": (-1.098612, -1.764098),
    "gbc": (-0.230686, -0.000120),
}
OF_FEATURES = [
    name
    for name in scores.names()
    if next(iter(inspect.signature(scores.get(name)).parameters)) == "features"
]
ROTATION = [name for name in OF_FEATURES if name != "gbc"]
TRANSLATION = [name for name in OF_FEATURES if name != "logme"]


def call(name: str, features: np.ndarray, labels: object) -> float:
    """A score on what it takes of these features."""
    if name == "leep":
        return scores.get(name)(softmax(features, 1), labels)
    if name == "nce":
        return scores.get(name)(features.argmax(1), labels)
    return scores.get(name)(features, labels)


def classes_apart(seed: int = 0, rows: int = 60, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that overlap."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    features = generator.normal(0, 1, (rows, width)) + 1.5 * np.eye(3, width)[labels]
    return features, labels


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("data", [load_iris, load_digits])
def test_values_are_those_of_other_code(name: str, data: Callable) -> None:
    features, labels = data(return_X_y=True)
    expected = KNOWN[name][data is load_digits]
    assert call(name, features, labels) == pytest.approx(expected, abs=1e-4)


def test_every_score_is_listed_with_a_paper_in_one_line() -> None:
    described = scores.describe()
    assert {*KNOWN, "nleep", "gbc_spherical", "knn", "linear_probe"} == set(described)
    for name, line in described.items():
        text = inspect.getdoc(scores.get(name)) or ""
        assert line.endswith("."), name
        assert any(f"{year})" in text for year in range(1960, 2030)), name


@pytest.mark.parametrize("name", ROTATION)
def test_a_rotation_changes_nothing(name: str) -> None:
    features, labels = classes_apart()
    rotation = ortho_group.rvs(5, random_state=0)
    assert call(name, features @ rotation, labels) == pytest.approx(call(name, features, labels))


@pytest.mark.parametrize("name", TRANSLATION)
def test_a_translation_changes_nothing(name: str) -> None:
    features, labels = classes_apart()
    moved = features + np.arange(5) * 10
    assert call(name, moved, labels) == pytest.approx(call(name, features, labels))


@pytest.mark.parametrize("name", scores.names())
def test_classes_further_apart_score_higher(name: str) -> None:
    features, labels = classes_apart()
    shift = np.eye(3, 5)[labels]
    assert call(name, features + 3 * shift, labels) > call(name, features - shift, labels)


@pytest.mark.parametrize("name", scores.names())
def test_input_is_read_only_and_of_any_type(name: str) -> None:
    features, labels = classes_apart()
    features = features.astype(np.float32)
    whole = call(name, features.astype(np.float64), labels)
    before = features.copy()
    features.flags.writeable = labels.flags.writeable = False
    words = np.array(["pear", "apple", "größe"])[labels]
    for given in (labels, words, list(words), words.astype(object), labels * 1.0, labels * 7 - 3):
        assert call(name, features, given) == pytest.approx(whole, abs=1e-4)
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize("name", scores.names())
@pytest.mark.parametrize("kind", ["constant", "some constant", "one class", "single rows", "wide"])
def test_odd_data_give_finite_numbers(name: str, kind: str) -> None:
    features, labels = classes_apart()
    if kind == "constant":
        features = np.full_like(features, 0.1)
    elif kind == "some constant":
        features[:, 1:4] = [0.0, 0.1, 1e6]
    elif kind == "one class":
        labels = np.zeros_like(labels)
    elif kind == "single rows":
        labels = np.where(np.arange(60) > 4, 7, np.arange(60))
    else:
        features, labels = classes_apart(rows=12, width=40)
    assert math.isfinite(call(name, features, labels))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_mistakes_say_what_was_found_and_expected(name: str) -> None:
    features, labels = classes_apart()
    score = scores.get(name)
    holed = features.copy()
    holed[3, 1] = np.nan
    unknown = [None, *labels[1:].tolist()]
    for given, message in (
        ((features[0], labels), r"\(N, D\).*found \(5,\)"),
        ((features, labels[:-1]), "expected 60, found 59"),
        ((features, np.eye(3)[labels]), r"\(N,\), found \(60, 3\)"),
        ((holed, labels), "1 of 60 rows, first in row 3"),
        ((features, unknown), "None or NaN in 1 of 60 rows"),
        ((features.astype(str), labels), "real numbers, found <U"),
        ((features[:1], labels[:1]), "at least 2 rows, found 1"),
    ):
        with pytest.raises(ValueError, match=message):
            score(*given)
