"""Sets of torchvision as rows, from files as torchvision leaves them."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtransfer.data.blank import with_blank
from mmtransfer.data.rows import column, columns_of
from mmtransfer.data.torchvision_sets import few, torchvision_splits, voc_splits


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """MNIST's four files, 60 and 20 pictures whose first pixel is their number."""
    where = tmp_path_factory.mktemp("sets")
    raw = where / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        pictures = np.zeros((count, 28, 28), np.uint8)
        pictures[:, 0, 0] = np.arange(count)
        digits = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + digits.tobytes())
    return where


def numbers(rows) -> list[int]:
    return [int(np.asarray(row["image"])[0, 0]) for row in rows]


def test_pictures_keep_their_labels_and_each_is_in_one_split(root):
    splits = torchvision_splits("MNIST", root, "digit")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 54,
        "validation": 6,
        "test": 20,
    }
    assert sorted(numbers(splits["train"]) + numbers(splits["validation"])) == [*range(60)]
    for rows in splits.values():
        for row, number in zip(rows, numbers(rows), strict=True):
            assert row["digit"].startswith(f"{number % 10} - ")  # torchvision's names


def test_few_labels_are_so_many_of_each_class(root):
    every = torchvision_splits("MNIST", root, "digit")["train"]
    some = torchvision_splits("MNIST", root, "digit", labels=3)["train"]
    assert set(Counter(column(some, "digit")).values()) == {3}
    assert set(numbers(some)) <= set(numbers(every))
    listed = [{"x": i, "label": i % 2} for i in range(9)]
    found = few(listed, "label", 2)
    assert Counter(row["label"] for row in found) == {0: 2, 1: 2}
    assert found == sorted(few(listed, "label", 2), key=lambda row: row["x"])
    assert any(few(listed, "label", 2, seed) != found for seed in range(1, 5))
    assert few(listed, "label", 0) == listed


def test_few_labels_of_rows_that_stand_by_speaker_have_all_speakers():
    """As recordings do in FSDD: a model of digit and speaker needs both."""
    listed = [{"digit": i % 10, "speaker": i // 100} for i in range(600)]
    assert len({row["speaker"] for row in few(listed, "digit", 10)}) == 6


def test_labels_are_read_without_a_picture(root, monkeypatch):
    rows = torchvision_splits("MNIST", root, "digit")["test"]
    monkeypatch.setattr(type(rows.dataset), "__getitem__", lambda *_: pytest.fail("decoded"))
    assert len(list(column(rows, "digit"))) == 20
    with pytest.raises(ValueError, match="Did you mean 'digit'"):
        rows.select_columns("digits")


def test_an_unknown_set_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'FashionMNIST'"):
        torchvision_splits("FashionMNST", tmp_path, "label")


def test_photos_say_whether_they_show_an_object(tmp_path, monkeypatch):
    import torchvision.datasets.voc as voc

    monkeypatch.setattr(voc, "download_and_extract_archive", lambda *args, **more: None)
    shown = {"train": ["cat", "dog"], "val": ["dog", "dog"], "test": ["sofa"]}
    for number, (part, objects) in enumerate(shown.items()):
        for base in ("VOCdevkit/VOC2007", "TrainVal/VOCdevkit/VOC2007"):
            here = tmp_path / base
            for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
                (here / folder).mkdir(parents=True, exist_ok=True)
            (here / f"ImageSets/Main/{part}.txt").write_text(f"00{number}\n")
            Image.new("RGB", (8, 8)).save(here / f"JPEGImages/00{number}.jpg")
            found = "".join(f"<object><name>{name}</name></object>" for name in objects)
            text = f"<annotation>{found}</annotation>"
            (here / f"Annotations/00{number}.xml").write_text(text)
    splits = voc_splits(tmp_path, ["cat", "dog"])
    answers = {k: [(r["cat"], r["dog"]) for r in rows] for k, rows in splits.items()}
    assert answers == {
        "train": [("yes", "yes")],
        "validation": [("no", "yes")],
        "test": [("no", "no")],
    }
    assert splits["train"][0]["image"].size == (8, 8)


def test_blank_columns_stand_beside_those_that_are_there(root):
    listed = [{"image": 1, "digit": "a"}, {"image": 2, "digit": "b"}]
    splits = with_blank({"train": listed} | torchvision_splits("MNIST", root, "digit"), "garment")
    splits["listed"] = with_blank({"listed": listed}, "digit", "garment")["listed"]
    for rows in splits.values():
        assert set(columns_of(rows)) == {"image", "digit", "garment"}
        assert set(column(rows, "garment")) == {None}
        assert None not in set(column(rows, "digit"))
        assert set(rows[0]) == {"image", "digit", "garment"}
        assert set(rows.select_columns(["garment", "digit"])[0]) == {"garment", "digit"}
    assert [row["digit"] for row in splits["listed"]] == ["a", "b"]
