"""A checksum tells what a model is shown from all else, whoever wrote the files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtransfer.data.checksum import checksum

PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)
SAMPLES = np.arange(-50, 50, dtype=np.int16)


def png(pixels: np.ndarray = PIXELS, level: int = 1, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def sound(format: str, samples: np.ndarray = SAMPLES, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()


def row(**values: Any) -> dict[str, Any]:
    return {"image": png(), "audio": sound("FLAC"), "text": "pear", "digit": 3, **values}


@pytest.mark.parametrize(
    "same",
    [
        {"image": png(level=9)},
        {"image": {"bytes": png(), "path": "other.png"}},
        {"audio": sound("WAV")},
        {"digit": np.int64(3)},
        {"comment": None},
    ],
)
def test_how_values_are_stored_makes_no_difference(same: dict[str, Any]) -> None:
    assert checksum([row(**same)]) == checksum([row()])
    assert checksum([dict(reversed(row(**same).items()))]) == checksum([row()])


@pytest.mark.parametrize(
    "other",
    [
        {"image": png(PIXELS + 1)},
        {"image": png(PIXELS.reshape(8, 6))},
        {"image": png(mode="RGB")},
        {"image": None},
        {"audio": sound("FLAC", SAMPLES + 1)},
        {"audio": sound("FLAC", rate=16000)},
        {"audio": b"OggS"},
        {"text": "peer"},
        {"text": ""},
        {"digit": 4},
        {"digit": "3"},
        {"digit": 3.0},
        {"comment": "x"},
    ],
)
def test_any_other_content_changes_it(other: dict[str, Any]) -> None:
    assert checksum([row(**other)]) != checksum([row()])


def test_floats_are_told_apart() -> None:
    """Sound of floats read as whole numbers would be silence."""
    a, b = (sound("WAV", np.float32(level * SAMPLES)) for level in (1e-3, 2e-3))
    assert checksum([row(audio=a)]) != checksum([row(audio=b)])


def test_order_and_splits_count() -> None:
    rows = [row(digit=digit) for digit in range(3)]
    assert checksum(rows) != checksum(rows[::-1])
    assert checksum(rows) != checksum(rows[:2])
    splits = {"train": rows, "test": rows[:1]}
    assert checksum(splits) == checksum(dict(reversed(splits.items())))
    assert checksum(splits) != checksum({"train": rows, "validation": rows[:1]})
    # A value that moves to the neighbouring column, or row, is another set.
    assert checksum([{"a": "x", "b": None}]) != checksum([{"a": None, "b": "x"}])
    assert checksum([{"a": "x"}, {"b": "y"}]) != checksum([{"a": "x", "b": "y"}])


def test_files_count_by_content_and_texts_never_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = checksum([row()])
    (tmp_path / "pear").write_text("a file that a text happens to name")
    (tmp_path / "a.png").write_bytes(png(level=0))
    assert checksum([row(image={"bytes": None, "path": str(tmp_path / "a.png")})]) == before


def test_the_palette_counts() -> None:
    pictures = []
    for colours in ([0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]):
        picture = Image.fromarray(PIXELS % 2, mode="P")
        picture.putpalette(colours)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    assert checksum([row(image=pictures[0])]) != checksum([row(image=pictures[1])])
