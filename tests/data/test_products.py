"""The embedded products: reproducible, disjoint, noisy in the way that is promised."""

import io
import math
import wave
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmtransfer.data import products as module
from mmtransfer.data.products import (
    ATTRIBUTES,
    PIXELS,
    ROWS,
    SAMPLE_RATE,
    product_data,
    product_rows,
    products,
    speakers,
)

SEEDS = st.integers(0, 2**32)


@cache
def sample(split: str) -> list[dict[str, Any]]:
    return product_rows(split, rows=400)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), float)


def samples(wav: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(wav)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(list(ROWS)), st.integers(0, 20), st.integers(0, 20))
def test_a_row_depends_on_seed_split_and_number_only(seed, split, short, long):
    short, long = sorted((short, long))
    rows = product_rows(split, seed=seed, rows=long)
    product_rows("source/train", seed=seed + 1, rows=1)  # leaves no trace
    assert product_rows(split, seed=seed, rows=short) == rows[:short]


def test_seeds_and_splits_differ():
    pictures = [
        row["image"]
        for seed in (0, 1)
        for split in ROWS
        for row in product_rows(split, seed=seed, rows=20)
    ]
    assert len(set(pictures)) == len(pictures)


@given(SEEDS)
def test_target_products_are_new_combinations_of_known_values(seed):
    source, target = products("source", seed=seed), products("target", seed=seed)
    assert len(set(source) | set(target)) == len(source) + len(target)
    for position, values in enumerate(ATTRIBUTES.values()):
        assert {product[position] for product in source} == set(values)
    assert len({product.name for product in source + target}) == len(source) + len(target)


@given(SEEDS)
def test_the_category_is_a_coarser_label_known_from_the_source(seed):
    source, target = products("source", seed=seed), products("target", seed=seed)
    assert {p.category for p in target} <= {p.category for p in source}
    assert 2 <= len({p.category for p in target}) < len(target)


@pytest.mark.parametrize("split", ROWS)
def test_rows_have_the_promised_columns(split):
    category = {p.name: p.category for p in products(split.split("/")[0])}
    for row in sample(split)[:60]:
        assert list(row) == ["image", "text", "audio", "product", "category"]
        assert row["category"] == category[row["product"]]
        with Image.open(io.BytesIO(row["image"])) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            assert picture.size == (PIXELS, PIXELS)
        assert row["text"] is None or row["text"].strip()
        if row["audio"] is not None:
            with wave.open(io.BytesIO(row["audio"])) as file:
                assert file.getparams()[:4] == (1, 2, SAMPLE_RATE, SAMPLE_RATE)
            assert 0.2 < np.abs(samples(row["audio"])).max() / 2**15 < 1


@pytest.mark.parametrize("split", ROWS)
def test_every_prefix_is_balanced(split):
    counts = Counter(row["product"] for row in sample(split)[:100])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert ROWS[split] % len(products(split.split("/")[0])) == 0


def test_product_data_is_all_splits(monkeypatch):
    monkeypatch.setattr(module, "ROWS", dict.fromkeys(ROWS, 3))
    data = product_data(seed=4)
    assert {f"{domain}/{part}" for domain in data for part in data[domain]} == set(ROWS)
    assert data["target"]["test"] == product_rows("target/test", seed=4)


@pytest.mark.parametrize("column", ["text", "audio"])
def test_one_in_ten_is_missing(column):
    rows = [row for split in ROWS for row in sample(split)]
    missing = sum(row[column] is None for row in rows)
    deviation = math.sqrt(len(rows) * 0.1 * 0.9)
    assert abs(missing - 0.1 * len(rows)) < 4 * deviation


def test_text_and_audio_are_missing_independently():
    rows = [row for split in ROWS for row in sample(split)]
    both = sum(row["text"] is None and row["audio"] is None for row in rows)
    assert both < 3 * 0.01 * len(rows)


@given(SEEDS)
def test_no_two_splits_share_a_voice(seed):
    voices = [voice for split in ROWS for voice in speakers(split, seed=seed)]
    assert len(set(voices)) == len(voices)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'train'.*source/train"):
        product_rows("train")
    with pytest.raises(ValueError, match="'test'"):
        products("test")
    with pytest.raises(ValueError, match="-1"):
        product_rows("source/train", seed=-1)


def nearest_centroid(features: list[np.ndarray], labels: list[str]) -> float:
    """Accuracy on the second half of the centroids of the first half, above that of chance."""
    x, y = np.stack(features), np.array(labels)
    half, names = len(y) // 2, sorted(set(labels))
    centroids = np.stack([x[:half][y[:half] == name].mean(0) for name in names])
    nearest = ((x[half:, None] - centroids) ** 2).sum(-1).argmin(1)
    return float(np.mean(np.array(names)[nearest] == y[half:])) - 1 / len(names)


def described(column: str) -> list[tuple[Any, module.Product]]:
    by_name = {product.name: product for product in products("source")}
    rows = sample("source/train")
    return [(row[column], by_name[row["product"]]) for row in rows if row[column] is not None]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(products("source")), st.sampled_from(list(ATTRIBUTES)), st.data())
def test_every_modality_shows_every_attribute(key, product, attribute, data):
    """With the same draws and nothing dropped, another value alone changes all three."""
    value = data.draw(st.sampled_from(ATTRIBUTES[attribute]))
    other, voice = product._replace(**{attribute: value}), speakers("target/test")[0]

    def make(product: module.Product) -> tuple[np.ndarray, str, np.ndarray]:
        photo, label, sound = (np.random.default_rng([key, column]) for column in range(3))
        return (
            pixels(module._draw(product, photo)),
            module._write(product, label),
            samples(module._speak(product, voice, sound)),
        )

    everything = dict.fromkeys(ATTRIBUTES, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WRITTEN", everything)
        patch.setattr(module, "SPOKEN", everything)
        patch.setattr(module, "MARK_HIDDEN", 0.0)
        (photo, label, sound), (photo2, label2, sound2) = make(product), make(other)
    same = other == product
    assert ((photo == photo2).all(), label == label2, (sound == sound2).all()) == (same,) * 3


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_the_label_names_the_attribute_more_often_than_others_do(attribute):
    words = {value: module._VOCABULARY[value][0].split() for value in ATTRIBUTES[attribute]}
    hits = Counter()
    for text, product in described("text"):
        for value, names in words.items():
            hits[value == getattr(product, attribute)] += any(name in text for name in names)
    own, other = hits[True], hits[False] / (len(words) - 1)
    assert own > 5 * other
    assert own < 0.85 * len(described("text"))  # dropped, misread or mislabelled


def test_the_recording_says_the_attributes(monkeypatch):
    """Without drops and noise, one voice says words that spectra tell apart."""
    for attribute in ATTRIBUTES:
        monkeypatch.setitem(module.SPOKEN, attribute, 0.0)
    voice = module.Speaker(pitch=120, tract=1.0, syllable=0.12)
    catalogue = products("source")

    def spectrum(product: module.Product, key: int) -> np.ndarray:
        wav = module._speak(product, voice, np.random.default_rng(key))
        power = np.abs(np.fft.rfft(samples(wav)))
        power = np.log1p(power.reshape(-1)[:8000].reshape(80, 100).mean(1))
        return power / np.linalg.norm(power)

    for attribute, values in ATTRIBUTES.items():
        monkeypatch.setitem(module.SPOKEN, attribute, 1.0)
        features = [spectrum(p, key) for key, p in enumerate(catalogue * 2)]
        labels = [getattr(p, attribute) for p in catalogue * 2]
        assert nearest_centroid(features, labels) > 0.5 * (1 - 1 / len(values)), attribute
        monkeypatch.setitem(module.SPOKEN, attribute, 0.0)
