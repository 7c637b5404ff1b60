"""Frozen features, mappings and heads: against NumPy and scikit-learn, with what is absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import build_encoders
from mmtransfer.training.options import TrainingOptions
from mmtransfer.transfer.feature_based import HEADS, FeatureBased

SPEC = "mlp?shape=[3]&widths=[6,5]"


def arrays(seed: int = 0, count: int = 60, shift: float = 0.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    mixing = np.random.default_rng(9).normal(size=(3, 8))
    x = 4 * np.eye(3)[labels] @ mixing + rng.normal(0, 1, (count, 8)) + shift
    return x, np.array(["apple", "fig", "pear"])[labels]


def rows(count: int = 30, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    found = [
        {n: rng.normal("xyz".index("xyz"[i % 3]), 0.5, 3) for n in "ab"} | {"kind": "xyz"[i % 3]}
        for i in range(count)
    ]
    for i, row in enumerate(found):
        row["a"] = None if i % 7 == 1 else row["a"]
        row["b"] = None if i % 5 == 1 else row["b"]
    return found


@pytest.fixture
def options(tmp_path):
    return TrainingOptions(progress=False, cache=str(tmp_path))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mapping", ["none", "pca", "svd", "whitening"])
def test_every_mapping_works_with_every_head_and_twice_the_same(head, mapping):
    (x, y), (source, source_y), (test, test_y) = arrays(0, 12), arrays(1, 40, 0.3), arrays(2, 90)
    components = None if mapping == "none" else 4
    found = []
    for _ in range(2):
        model = FeatureBased(mapping=mapping, components=components, fitted_on="both", head=head)
        model.fit(x, y, source, source_y)
        assert model.map(test).shape == (90, components or 8)
        found.append(model.predict(test))
    np.testing.assert_array_equal(*found)
    assert model.score(test, test_y) == (found[0] == test_y).mean() > 0.9


def test_without_a_mapping_it_is_scikit_learn_on_standardised_features():
    (x, y), (test, _) = arrays(0, 30), arrays(2, 90)
    scaler = StandardScaler().fit(x)
    plain = LogisticRegression(max_iter=2000).fit(scaler.transform(x), y)
    model = FeatureBased().fit(x, y)
    np.testing.assert_array_equal(model.predict(test), plain.predict(scaler.transform(test)))


@pytest.mark.parametrize("fitted_on", ["target", "source", "both"])
def test_mappings_are_fitted_on_the_chosen_side(fitted_on):
    (x, y), (source, _) = arrays(0, 30), arrays(1, 50, 5.0)
    side = {"target": x, "source": source, "both": np.concatenate([x, source])}[fitted_on]
    scaled = (side - side.mean(0)) / side.std(0)

    def mapped(mapping):
        return FeatureBased(mapping=mapping, fitted_on=fitted_on).fit(x, y, source).map(side)

    white = mapped("whitening")  # one component less than there are features
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(7), atol=1e-8)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-8)
    left, values, _ = np.linalg.svd(scaled, full_matrices=False)
    np.testing.assert_allclose(np.abs(mapped("pca")), np.abs(left * values)[:, :7], atol=1e-6)
    singular = np.linalg.svd(side / side.std(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(mapped("svd"), axis=0)[:3], singular[:3], rtol=1e-3)


def of_rank_10(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """64 features in float32, the last a copy and the last but one dead."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    hidden = rng.normal(0, 1, (count, 10))
    hidden[:, 0] += 2 * labels
    x = (hidden @ np.random.default_rng(9).normal(size=(10, 64))).astype(np.float32)
    x[:, -1], x[:, -2] = x[:, 0], 1.0
    return x, labels


def test_whitening_leaves_out_what_is_rounding():
    (x, y), (test, test_y) = of_rank_10(200, 0), of_rank_10(500, 1)
    model = FeatureBased(mapping="whitening").fit(x, y)
    white = model.map(test)
    assert white.shape == (500, 10)
    assert np.abs(white).max() < 6  # of deviation 1
    np.testing.assert_allclose(np.cov(model.map(x), rowvar=False), np.eye(10), atol=1e-6)
    plain = FeatureBased(mapping="pca", components=10).fit(x, y)
    assert model.score(test, test_y) > plain.score(test, test_y) - 0.02


@pytest.mark.filterwarnings("ignore:invalid value")  # a share of no variance at all
def test_features_that_are_all_the_same_are_whitened_to_zeros():
    x = np.ones((20, 4))
    assert not FeatureBased(mapping="whitening").fit(x, np.arange(20) % 2).map(x).any()


def test_a_share_of_the_variance_may_be_asked_for():
    x, y = arrays(0, 60)
    model = FeatureBased(mapping="pca", components=0.6).fit(x, y)
    assert 1 <= model.map(x).shape[1] < 7


def test_rows_are_read_through_the_store_layer_by_layer(options, tmp_path):
    layers = {"a": [1, "last"]}
    encoders = build_encoders(dict.fromkeys("ab", SPEC))
    model = FeatureBased(encoders, "kind", layers, options=options)
    train = rows()
    found = model.features(train)
    assert found.shape == (30, 6 + 5 + 5)
    known = [i for i, row in enumerate(train) if row["a"] is not None]
    inputs = Collate({"a": encoders["a"]}, {})([(i, train[i]) for i in known]).inputs["a"].values
    encoder = encoders["a"].eval()
    below = encoder.below(1, **inputs).pooled().detach()
    np.testing.assert_allclose(found[known, :6], below, atol=1e-6)
    np.testing.assert_allclose(found[known, 6:11], encoder(**inputs).pooled().detach(), atol=1e-6)
    assert np.isnan(found[[i for i in range(30) if i not in known], :11]).all()
    stores = list((tmp_path / "features").iterdir())
    assert len(stores) == 3
    np.testing.assert_array_equal(model.features(train), found)
    assert sorted((tmp_path / "features").iterdir()) == sorted(stores)


def test_rows_with_absent_modalities_are_told_apart_by_what_they_have(options):
    torch.manual_seed(0)
    encoders = dict.fromkeys("ab", SPEC)
    model = FeatureBased(encoders, "kind", mapping="pca", options=options).fit(rows())
    test = rows(60, 1)
    assert model.score(test) > 0.8
    one = [{"b": row["b"], "kind": row["kind"]} for row in test if row["b"] is not None]
    assert model.score(one) > 0.6  # the column is not even there
    with pytest.raises(ValueError, match=r"none of the columns \['a', 'b'\]"):
        model.predict([{"c": 1}])


def test_what_is_absent_stands_at_the_mean():
    x, y = arrays(0, 30)
    model = FeatureBased(mapping="none").fit(x, y)
    hidden = x.copy()
    hidden[0, 2:5] = np.nan
    np.testing.assert_allclose(model.map(hidden)[0, 2:5], 0, atol=1e-12)
    np.testing.assert_allclose(model.map(hidden)[1:], model.map(x)[1:])


def test_labels_may_be_on_either_side():
    """None on the target: the head learns on the source alone, mapped as the target says."""
    (x, _), (source, source_y), (test, test_y) = arrays(0), arrays(1), arrays(2)
    model = FeatureBased(fitted_on="both").fit(x, None, source, source_y)
    assert model.score(test, test_y) > 0.9
    with pytest.raises(ValueError, match="no row of target or source has a label"):
        FeatureBased().fit(x)
    with pytest.raises(ValueError, match="no row has a label to score by"):
        model.score(test, [None] * len(test))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"mapping": "pcs"}, "unknown mapping 'pcs'.*mean 'pca'"),
        ({"fitted_on": "sources"}, "unknown fitted_on 'sources'.*mean 'source'"),
        ({"head": "knnn"}, "unknown head 'knnn'.*mean 'knn'"),
        ({"head": "knn", "head_options": {"neighbors": 3}}, "head 'knn' has no option 'neighbors'"),
        ({"mapping": "svd", "components": 0.5}, "components of svd are a number of them"),
        ({"layers": {"b": [1]}}, "unknown modality 'b'.*Valid: a"),
        ({"layers": {"a": ["lats"]}}, "encoder 'a' has no layer 'lats'.*mean 'last'.*1, last"),
        ({"layers": {"a": [2]}}, "encoder 'a' has no layer 2"),
    ],
)
def test_choices_that_make_no_sense_name_the_nearest(choices, message):
    with pytest.raises(ValueError, match=message):
        FeatureBased({"a": SPEC}, "kind", **choices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"fitted_on": "source"}, "the mapping needs rows of the source, found none"),
        ({"head": "tradaboost"}, "the head tradaboost needs rows of the source, found none"),
        ({"mapping": "pca", "components": 9}, "at most 8 components, found 9"),
    ],
)
def test_what_is_not_there_cannot_be_used(choices, message):
    x, y = arrays()
    with pytest.raises(ValueError, match=message):
        FeatureBased(**choices).fit(x, y)
    with pytest.raises(ValueError, match="call fit first"):
        FeatureBased(**choices).predict(x)
