"""The pairing is by label and within splits, the energy and the noise are what was asked for."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.random import default_rng
from PIL import Image
from sklearn.decomposition import PCA

from mmtransfer.data.av_digits import (
    ENERGY,
    SNR,
    av_digits,
    pair,
    principal_components,
    project,
    write_av_digits,
)
from mmtransfer.data.checksum import checksum
from mmtransfer.data.noise import PEAK
from mmtransfer.data.rows import class_names, load_rows

Splits = dict[str, list[dict[str, Any]]]


def picture(digit: int, rng: np.random.Generator) -> bytes:
    pixels = 12 * digit + rng.integers(0, 100, (6, 5)) * np.linspace(0, 1, 5)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def recording(digit: int, rng: np.random.Generator) -> bytes:
    tone = np.sin((0.2 + 0.05 * digit) * np.arange(1500 + rng.integers(200)))
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * tone * rng.uniform(0.5, 1), 8000, format="FLAC")
    return buffer.getvalue()


def source(name: str, make: Any, sizes: dict[str, int], label: str = "digit") -> Splits:
    rng = default_rng(sum(map(ord, name)))
    splits: Splits = {}
    for split, size in sizes.items():
        digits = rng.permutation(np.arange(size) % 10).tolist()
        splits[split] = [{name: make(digit, rng), label: digit} for digit in digits]
    return splits


@pytest.fixture(scope="module")
def mnist() -> Splits:
    return source("image", picture, {"train": 400, "test": 120}, "label")


@pytest.fixture(scope="module")
def fsdd() -> Splits:
    return source("audio", recording, {"train": 70, "test": 30})


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def origin(value: dict[str, Any]) -> tuple[str, int]:
    split, number = Path(value["path"]).stem.split("-")
    return split, int(number)


def test_pairs_have_one_digit_and_stay_in_their_split(mnist: Splits, fsdd: Splits) -> None:
    splits = av_digits(mnist, fsdd)
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 360,
        "validation": 40,
        "test": 120,
    }
    used: dict[str, list[set[tuple[str, int]]]] = {"image": [], "audio": []}
    for split, rows in splits.items():
        turns: Counter[tuple[str, int]] = Counter()
        for row in rows:
            (shown, picture_number), (said, number) = origin(row["image"]), origin(row["audio"])
            assert shown == said == ("test" if split == "test" else "train")
            assert mnist[shown][picture_number]["label"] == row["digit"]
            assert fsdd[said][number]["digit"] == row["digit"]
            turns[said, number] += 1
        assert max(turns.values()) - min(turns.values()) <= 1
        used["image"].append({origin(row["image"]) for row in rows})
        used["audio"].append(set(turns))
    for sources, data in ((used["image"], mnist), (used["audio"], fsdd)):
        assert sum(map(len, sources)) == len(set.union(*sources)) == sum(map(len, data.values()))


def test_a_row_depends_on_seed_options_and_number_only(mnist: Splits, fsdd: Splits) -> None:
    rows, again = av_digits(mnist, fsdd)["train"], av_digits(mnist, fsdd)["train"]
    assert [again[i] for i in (7, 3, -1)] == [rows[i] for i in (7, 3, 359)]
    assert rows.select_columns(["digit", "audio"])[5] == {k: rows[5][k] for k in ("digit", "audio")}
    digests = set()
    for options in ({}, {"seed": 1}, {"energy": 0.95}, {"snr": 0.0}, {"snr": (0.0, 1.0)}):
        changed = av_digits(mnist, fsdd, **options)["test"]
        digests.add(checksum([changed[i] for i in range(20)]))
    assert len(digests) == 5
    with pytest.raises(IndexError):
        rows[360]
    with pytest.raises(ValueError, match="no column 'digits'.*'digit'"):
        rows.select_columns("digits")


def test_a_recording_that_repeats_gets_new_noise(mnist: Splits, fsdd: Splits) -> None:
    rows = av_digits(mnist, fsdd)["train"]
    first = origin(rows[0]["audio"])
    repeats = [row["audio"]["bytes"] for row in rows if origin(row["audio"]) == first]
    assert len(repeats) > 1
    assert len(set(repeats)) == len(repeats)


def test_full_energy_without_noise_is_the_source(mnist: Splits, fsdd: Splits) -> None:
    for rows in av_digits(mnist, fsdd, energy=1, snr=np.inf).values():
        for row in list(rows)[:20]:
            split, number = origin(row["image"])
            assert (
                pixels(row) == pixels({"image": {"bytes": mnist[split][number]["image"]}})
            ).all()
            split, number = origin(row["audio"])
            voice, _ = soundfile.read(io.BytesIO(fsdd[split][number]["audio"]))
            heard, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
            np.testing.assert_allclose(heard, voice * PEAK / np.abs(voice).max(), atol=1e-4)
            assert rate == 8000


@pytest.mark.parametrize("snr", [-6.0, 9.0])
def test_the_noise_has_its_power(mnist: Splits, fsdd: Splits, snr: float) -> None:
    measured = []
    for row in list(av_digits(mnist, fsdd, snr=snr)["test"])[:30]:
        split, number = origin(row["audio"])
        voice, _ = soundfile.read(io.BytesIO(fsdd[split][number]["audio"]))
        heard, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        kept = voice * (heard @ voice) / (voice @ voice)  # the noise is nearly orthogonal to it
        measured.append(10 * np.log10((kept @ kept) / np.sum((heard - kept) ** 2)))
    assert np.mean(measured) == pytest.approx(snr, abs=0.3)


def test_the_energy_is_that_of_the_principal_components_of_training(mnist: Splits) -> None:
    train, test = (
        np.stack([pixels({"image": {"bytes": row["image"]}}) for row in mnist[split]])
        for split in ("train", "test")
    )
    flat = train.reshape(len(train), -1)
    for energy in (0.25, 0.6, 0.95):
        mean, axes = principal_components(train, energy)
        reference = PCA(energy, svd_solver="full").fit(flat)
        assert axes.shape == (30, reference.n_components_)
        again = reference.inverse_transform(reference.transform(test.reshape(len(test), -1)))
        expected = np.rint(again).clip(0, 255).reshape(test.shape)
        assert (project(test, mean, axes) == expected).mean() > 0.999  # but for halves
    assert principal_components(train, 1)[1].shape == (30, 30)


def test_only_training_pictures_decide_what_is_kept(mnist: Splits, fsdd: Splits) -> None:
    before = av_digits(mnist, fsdd)
    held = {origin(row["image"]) for row in before["validation"]}
    other = picture(9, default_rng(5))
    changed = {
        split: [
            row | {"image": other} if split == "test" or (split, i) in held else row
            for i, row in enumerate(rows)
        ]
        for split, rows in mnist.items()
    }
    after = av_digits(changed, fsdd)
    assert checksum(after["train"]) == checksum(before["train"])
    assert checksum(after["validation"]) != checksum(before["validation"])


def test_partners_take_turns() -> None:
    left, right = np.array([1] * 7 + [2] * 2), np.array([2, 1, 1, 1, 2, 2, 2])
    for seed in range(5):
        partners = pair(left, right, default_rng(seed))
        assert (right[partners] == left).all()
        assert sorted(Counter(partners[:7]).values()) == [2, 2, 3]
        assert partners[7] != partners[8]
    with pytest.raises(ValueError, match="no recording of the digit 3"):
        pair(np.array([3]), right, default_rng(0))


def test_what_is_written_is_what_is_in_memory(mnist: Splits, fsdd: Splits, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, splits in (("mnist", mnist), ("fsdd", fsdd)):
        (tmp_path / name).mkdir()
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / f"{split}.parquet")
    sources = tmp_path / "mnist", tmp_path / "fsdd"
    about = write_av_digits(tmp_path / "set", *sources, seed=3)
    read = load_rows(tmp_path / "set")
    built = av_digits(mnist, fsdd, seed=3)
    assert about["checksum"] == checksum(read) == checksum(built)
    assert about["rows"] == {split: len(rows) for split, rows in built.items()}
    assert read["test"][4] == built["test"][4]
    assert class_names(read["train"], "digit")[3] == "three"
    assert read["train"].features["audio"].sampling_rate == 8000
    with pytest.raises(FileExistsError, match="--overwrite"):  # before any work
        write_av_digits(tmp_path / "set", "no such source", "nor such")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, "energy must be above 0 and at most 1, found 0.0"),
        ({"energy": 1.5}, "energy .* found 1.5"),
        ({"seed": -1}, "seed must not be negative, found -1"),
        ({"snr": (3.0, 2.0)}, r"snr must be .* found \(3.0, 2.0\)"),
        ({"snr": np.nan}, "snr must be"),
        ({"snr": (0.0, np.inf)}, "snr must be"),
    ],
)
def test_options_out_of_range_are_named(
    mnist: Splits, fsdd: Splits, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        av_digits(mnist, fsdd, **options)


def test_sources_that_do_not_fit_are_named(mnist: Splits, fsdd: Splits, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no test rows"):
        av_digits({"train": mnist["train"]}, fsdd)
    with pytest.raises(
        ValueError, match="expected the columns 'image' and one of 'digit', 'label'"
    ):
        av_digits(fsdd, mnist)
    wrong = {split: [row | {"label": 10} for row in rows] for split, rows in mnist.items()}
    with pytest.raises(ValueError, match="'label' must be 0 to 9, found 10"):
        av_digits(wrong, fsdd)
    without = {split: [r for r in rows if r["digit"] != 4] for split, rows in fsdd.items()}
    with pytest.raises(ValueError, match="no recording of the digit 4 is left for the train"):
        av_digits(mnist, without)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.ones(9), 16000, format="FLAC")
    mixed = {**fsdd, "test": [row | {"audio": buffer.getvalue()} for row in fsdd["test"]]}
    with pytest.raises(ValueError, match=r"one sampling rate, found \[8000, 16000\] Hz"):
        av_digits(mnist, mixed)
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, "PNG")
    mixed = {**mnist, "test": [row | {"image": buffer.getvalue()} for row in mnist["test"]]}
    with pytest.raises(ValueError, match="one size"):
        av_digits(mixed, fsdd)
    with pytest.raises(FileNotFoundError, match="no such data directory"):
        av_digits(str(tmp_path / "nowhere"), fsdd)


def test_the_set_of_the_published_figures(shared: Path) -> None:
    """Other versions of numpy, Pillow or libFLAC must not change the set unnoticed."""
    splits = av_digits(shared / "data" / "mnist", shared / "data" / "fsdd")
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sizes == {"train": 10800, "validation": 1200, "test": 3000}
    assert (ENERGY, SNR) == (0.25, (-16.0, -4.0))
    beginning = {split: [rows[i] for i in range(50)] for split, rows in splits.items()}
    assert checksum(beginning) == "6ece201578d3dbe038984a3c18030b85"
