"""The retail set: what is in a row, how often it is wrong or missing, and that it repeats."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from mmtransfer.data.checksum import checksum
from mmtransfer.data.grocery import Product, read_grocery
from mmtransfer.data.retail import (
    PHRASES,
    RetailRows,
    misread,
    read_label,
    shrink,
    write_retail,
)
from mmtransfer.data.rows import class_names, load_rows

APPLE = Product("Pink-Lady", "Apple", "P" * 20, "I" * 20, ("D" * 20,))
GALA = Product("Royal-Gala", "Apple", "R" * 20, "I" * 20, ("D" * 20,))
MILK = Product("Milk", "Milk", "M" * 20, "L" * 20, ("D" * 20,))


def test_it_is_written_as_it_is_read(checkout: Path, espeak: Path, tmp_path: Path) -> None:
    about = write_retail(checkout, tmp_path / "set", seed=2)
    assert {file.name for file in (tmp_path / "set").iterdir()} == {
        "train.parquet",
        "val.parquet",
        "test.parquet",
        "set.json",
    }
    splits = load_rows(tmp_path / "set")
    assert about["rows"] == {"train": 4, "validation": 4, "test": 4}
    assert about["options"] == {"seed": 2, "speech": "eSpeak NG text-to-speech: 0.0"}
    assert about["checksum"] == checksum(splits)
    train = splits["train"]
    assert train.column_names == ["image", "text", "audio", "product", "category"]
    assert class_names(train, "product") == ["Pink-Lady", "Royal-Gala", "Anjou", "Arla-Milk"]
    assert class_names(train, "category") == ["Apple", "Pear", "Milk"]
    assert [row["product"] for row in train] == [0, 1, 2, 3]
    assert [row["category"] for row in train] == [0, 0, 1, 2]
    assert train[2]["image"]["path"] == "train_Fruit_Pear_Anjou_Anjou_001.jpg"
    assert train.features["audio"].sampling_rate == 16000
    sounds = [row["audio"]["bytes"] for row in train if row["audio"] is not None]
    assert all(sound.startswith(b"OggS") for sound in sounds)


def test_the_schema_is_that_of_the_published_set(
    shared: Path, checkout: Path, espeak: Path, tmp_path: Path
) -> None:
    published = load_rows(shared / "data" / "retail")["train"]
    write_retail(checkout, tmp_path / "set")
    ours = load_rows(tmp_path / "set")["train"]
    assert ours.schema.remove_metadata() == published.schema.remove_metadata()
    kinds = [{k: type(f) for k, f in rows.features.items()} for rows in (ours, published)]
    assert kinds[0] == kinds[1]


def test_a_row_depends_on_the_seed_and_its_number_only(checkout: Path, espeak: Path) -> None:
    grocery = read_grocery(checkout)
    rows, again = RetailRows(grocery, "train", 5), RetailRows(grocery, "train", 5)
    assert [again[i] for i in (3, 0)] == [rows[3], rows[0]]
    many = grocery._replace(photos={"train": grocery.photos["train"] * 4})
    one, other = RetailRows(many, "train", 5), RetailRows(many, "train", 6)
    assert list(one)[:4] == list(rows)
    assert checksum(list(one)) != checksum(list(other))
    with pytest.raises(IndexError):
        rows[4]


def test_requests_name_the_category_or_now_and_then_the_product(
    checkout: Path, espeak: Path
) -> None:
    grocery = read_grocery(checkout)
    many = RetailRows(grocery._replace(photos={"test": grocery.photos["test"][:1] * 120}), "test")
    missing = sum(row["audio"] is None for row in many)
    phrases = [line.split("|")[-1] for line in espeak.read_text().splitlines()]
    assert len(phrases) == 120 - missing
    assert 4 < missing < 22
    specific = sum("pink lady" in phrase for phrase in phrases)
    assert 0.15 < specific / len(phrases) < 0.35
    said = {p.replace("pink lady", "{}").replace("apple", "{}") for p in phrases}
    assert said == set(PHRASES)
    spoken = {tuple(line.split("|")[1].split("+")) for line in espeak.read_text().splitlines()}
    assert spoken <= set(map(tuple, many.voices))
    assert len(spoken) > 60


def test_how_often_labels_are_missing_and_of_another_product() -> None:
    rng = default_rng(0)
    labels = [read_label(APPLE, [APPLE, GALA, MILK], rng) for _ in range(4000)]
    read = [label for label in labels if label is not None]
    # A label of which each word was dropped is missing too: at most 0.35 squared.
    assert 1 - len(read) / 4000 == pytest.approx(0.1 + 0.9 * (0.7 * 0.35**2), abs=0.03)
    wrong = sum("R" in label for label in read) / sum("R" in w or "P" in w for w in read)
    assert wrong == pytest.approx(0.15, abs=0.02)
    assert not any("M" in label for label in read)  # there is a neighbour of the same category
    described = sum("D" in label or "O" in label for label in read) / len(read)
    assert described == pytest.approx(0.3 * 0.65 / 0.9, abs=0.05)
    milk = [read_label(MILK, [APPLE, GALA, MILK], rng) or "" for _ in range(2000)]
    assert sum("P" in label for label in milk) > 40
    assert sum("R" in label for label in milk) > 40
    assert {read_label(MILK, [MILK], rng) is None for _ in range(50)} == {True, False}


def test_characters_are_confused_deleted_and_inserted() -> None:
    read = misread("o" * 100_000, default_rng(0))
    assert read.count("0") / 1e5 == pytest.approx(0.05 * 0.975, abs=0.003)
    inserted = sum(character not in "o0" for character in read) * 26 / 25
    assert inserted / 1e5 == pytest.approx(0.01, abs=0.002)
    assert (read.count("0") + read.count("o")) / 1e5 == pytest.approx(0.975, abs=0.003)
    assert "~" * 5 in misread("~" * 100, default_rng(0))  # what has no twin is not confused


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (60, 50)])
def test_photos_get_a_short_side_of_192(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "a.jpg")
    small = Image.open(io.BytesIO(shrink(tmp_path / "a.jpg")))
    assert (small.format, min(small.size)) == ("JPEG", 192)
    assert small.size[0] / small.size[1] == pytest.approx(size[0] / size[1], rel=0.01)
    assert np.abs(np.asarray(small).mean((0, 1)) - (200, 30, 30)).max() < 4


def test_photos_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg", exif=exif)
    small = Image.open(io.BytesIO(shrink(tmp_path / "a.jpg")))
    assert small.size == (192, 256)
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b.jpg is no readable picture"):
        shrink(tmp_path / "b.jpg")


def test_mistakes_show_before_any_work(
    checkout: Path, espeak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="seed must not be negative, found -1"):
        write_retail(checkout, tmp_path / "set", seed=-1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_retail(tmp_path / "nowhere", tmp_path / "set")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install espeak-ng"):
        write_retail(checkout, tmp_path / "other")
    assert not (tmp_path / "other").exists()
