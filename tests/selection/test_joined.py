"""Sets of encoders as one set of features."""

from __future__ import annotations

import numpy as np
import pytest

from mmtransfer.selection.joined import Standard, joined, standardised
from mmtransfer.selection.scores.evidence import logme
from mmtransfer.selection.scores.probe import linear_probe


@pytest.fixture
def features() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {"image": generator.normal(3, 5, (50, 40)), "text": generator.normal(0, 0.1, (50, 4))}


def test_each_encoder_weighs_the_same(features: dict[str, np.ndarray]) -> None:
    found = joined(features)
    assert found.shape == (50, 44)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)
    assert (found[:, :40] ** 2).sum(1).mean() == pytest.approx(1)
    assert (found[:, 40:] ** 2).sum(1).mean() == pytest.approx(1)
    changed = joined({"image": 7 * features["image"] - 2, "text": features["text"]})
    np.testing.assert_allclose(found, changed, atol=1e-12)


def test_absent_rows_are_the_mean_and_are_marked(features: dict[str, np.ndarray]) -> None:
    present = np.arange(50) % 5 > 0
    holed = {**features, "text": np.where(present[:, None], features["text"], np.nan)}
    found = joined(holed, {"text": present})
    assert found.shape == (50, 45)
    assert not found[~present, 40:44].any()
    kept = standardised(features["text"][present])
    np.testing.assert_allclose(found[present, 40:44], kept)
    assert len(set(found[present, 44])) == len(set(found[~present, 44])) == 1
    assert found[0, 44] < found[1, 44]


def test_constant_columns_and_single_rows_are_no_trouble() -> None:
    block = standardised(np.full((5, 2), 0.1))
    assert not block.any()
    one = standardised(np.ones((4, 2)), np.array([True, False, False, False]))
    assert np.isfinite(one).all()


def test_all_components_tell_the_same_and_few_are_the_largest(
    features: dict[str, np.ndarray],
) -> None:
    labels = np.arange(50) % 3
    whole, few = joined(features), joined(features, components=3)
    assert few.shape == (50, 6)
    every = joined(features, components=40)
    np.testing.assert_allclose(every @ every.T, whole @ whole.T, atol=1e-12)
    largest = np.linalg.svd(whole[:, :40], compute_uv=False)[:3]
    np.testing.assert_allclose(np.linalg.norm(few[:, :3], axis=0), largest)
    assert linear_probe(whole, labels) == linear_probe(every, labels)


def test_other_rows_are_treated_as_those_learned_from(features: dict[str, np.ndarray]) -> None:
    present = np.arange(50) % 5 > 0
    standard = Standard.of(features["image"], present, components=6)
    whole = standard(features["image"], present)
    np.testing.assert_allclose(whole, standardised(features["image"], present, 6))
    for some in (slice(0, 10), slice(1, 4), slice(0, 1)):  # some, none and all of them absent
        np.testing.assert_allclose(standard(features["image"][some], present[some]), whole[some])


def test_a_set_that_knows_more_scores_higher() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(120) % 4
    tens, ones = labels // 2, labels % 2
    features = {
        name: generator.normal(size=(120, 6)) + 2 * bit[:, None]
        for name, bit in (("tens", tens), ("ones", ones))
    }
    for score in (linear_probe, logme):
        both = score(joined(features), labels)
        assert both > max(score(standardised(f), labels) for f in features.values())


def test_mistakes_name_the_modality(features: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="'image' has 50, 'text' 49"):
        joined({**features, "text": features["text"][1:]})
    with pytest.raises(ValueError, match="'text': no row has this modality"):
        joined(features, {"text": np.zeros(50, bool)})
    with pytest.raises(ValueError, match=r"'text': present must be bool of shape \(50,\).*\(3,\)"):
        joined(features, {"text": np.ones(3, bool)})
    with pytest.raises(ValueError, match="no features"):
        joined({})
