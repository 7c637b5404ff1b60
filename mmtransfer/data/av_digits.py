"""Audio-visual digits: hand-written digits of MNIST, blurred, beside spoken digits of FSDD, noisy.

In the manner of AV-MNIST (Vielzeuf et al., "CentralNet", 2018; Perez-Rua et al., "MFAS", CVPR
2019): pictures keep a quarter of their energy, recordings get noise, and a picture is paired with a
recording of the same digit. By its options one modality can be made as strong or weak as wanted.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from mmtransfer.data.building import check_free, write_set
from mmtransfer.data.digit_sources import Side, read_pictures, read_sounds
from mmtransfer.data.noise import mean_square, over_noise
from mmtransfer.data.rows import Rows
from mmtransfer.features import Row
from mmtransfer.registry import nearest

MNIST = "ylecun/mnist"
FSDD = "mteb/free-spoken-digit-dataset"
ENERGY = 0.25  # of the pictures' variance is kept, as in AV-MNIST
SNR = (-16.0, -4.0)  # dB, drawn for each row
VALIDATION = 0.1  # of the training pictures and of the training recordings

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLUMNS = ("image", "audio", "digit")


def av_digits(
    mnist: str | Path | Mapping[str, Rows] = MNIST,
    fsdd: str | Path | Mapping[str, Rows] = FSDD,
    seed: int = 0,
    energy: float = ENERGY,
    snr: float | tuple[float, float] = SNR,
) -> dict[str, DigitRows]:
    """Splits "train", "validation", "test" of a picture and a recording of the same digit.

    Rows have `image` (PNG, grey), `audio` (FLAC, mono, at the rate of the recordings: 8 kHz) and
    `digit` (0 to 9); each row is made when it is read and depends on the sources, the options and
    its number only. The first two are `{"bytes", "path"}`, the path telling the row of the source.

    Each picture comes once, in the order of its source. The recordings of its digit are fewer and
    come about equally often, with new noise each time. Of both sources, a tenth of each digit's
    training rows makes the validation split; no picture or recording is in two splits.

    Args:
        mnist: directory or hub id of a data set with `image` and `digit` or `label`, or its splits
        fsdd: the same with `audio`
        seed: of the validation split, the pairing and the noise
        energy: share of the pictures' variance that is kept, in (0, 1]: that of the smallest number
            of principal components which hold so much in the training pictures; 1 changes nothing
        snr: power of the voice over that of the added pink noise in dB, or (lowest, highest) of
            which each row draws; `inf` adds none

    Raises:
        FileNotFoundError: for a directory that is not there
        ValueError: for an option out of range, or a source without the columns, splits or digits
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be above 0 and at most 1, found {energy}")
    low, high = (snr, snr) if isinstance(snr, int | float) else snr
    if not low <= high or np.isinf(low) != np.isinf(high) or low == -np.inf:
        raise ValueError(f"snr must be a number or (lowest, highest) in dB, found {snr}")

    pictures, (sounds, rate) = read_pictures(mnist), read_sounds(fsdd)
    shown, said = _with_validation(pictures, seed, 0), _with_validation(sounds, seed, 1)
    mean, basis = principal_components(shown["train"].values, energy)
    rows = {}
    for number, (split, pictures_of) in enumerate(shown.items()):
        kept = pictures_of._replace(values=project(pictures_of.values, mean, basis))
        partners = pair(kept.digits, said[split].digits, default_rng([seed, 1, number]), split)
        rows[split] = DigitRows(
            kept, said[split].part(partners), rate, (low, high), [seed, 0, number]
        )
    return rows


def write_av_digits(
    directory: str | Path,
    mnist: str | Path = MNIST,
    fsdd: str | Path = FSDD,
    seed: int = 0,
    energy: float = ENERGY,
    snr: float | tuple[float, float] = SNR,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the splits of `av_digits` to parquet files; arguments and errors as there.

    -> what `set.json` says: options, rows of each split, checksum
    Raises `FileExistsError` where a set lies in the directory, unless `overwrite`.
    """
    import datasets

    check_free(directory, ["train", "validation", "test"], overwrite)
    splits = av_digits(mnist, fsdd, seed, energy, snr)
    features = {
        "image": datasets.Image(decode=False),
        "audio": datasets.Audio(sampling_rate=splits["train"].rate, decode=False),
        "digit": datasets.ClassLabel(names=list(DIGITS)),
    }
    options = {"mnist": str(mnist), "fsdd": str(fsdd), "seed": seed, "energy": energy, "snr": snr}
    schema = datasets.Features(features).arrow_schema
    return write_set("av-digits", splits, schema, directory, options, overwrite)


class DigitRows(Sequence[Row]):
    """Pictures and recordings side by side, encoded as they are read."""

    def __init__(
        self, shown: Side, said: Side, rate: int, snr: tuple[float, float], seed: list[int]
    ) -> None:
        self.shown, self.said, self.rate, self.snr, self.seed = shown, said, rate, snr, seed
        self.column_names = list(COLUMNS)

    def __len__(self) -> int:
        return len(self.shown.digits)

    def __getitem__(self, index: SupportsIndex) -> Row:  # type: ignore[override]
        number = range(len(self))[operator.index(index)]
        make = {"image": self._image, "audio": self._audio, "digit": self._digit}
        return {name: make[name](number) for name in self.column_names}

    def select_columns(self, names: str | Sequence[str]) -> DigitRows:
        """The same rows with these columns only; the others are not encoded."""
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self.column_names:
                raise ValueError(f"no column {name!r}.{nearest(name, self.column_names)}")
        rows = copy(self)
        rows.column_names = names
        return rows

    def _image(self, number: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(self.shown.values[number]).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": f"{self.shown.source[number]}.png"}

    def _audio(self, number: int) -> dict[str, Any]:
        import soundfile

        rng = default_rng([*self.seed, number])
        voice = self.said.values[number]
        gain = 1 / np.sqrt(np.arange(len(voice) // 2 + 1).clip(1))  # power falls as 1 / frequency
        low, high = self.snr
        snr = low if low == high else rng.uniform(low, high)
        noisy = over_noise(voice, gain, mean_square(voice, snr), rng)
        buffer = io.BytesIO()
        soundfile.write(buffer, np.rint(32767 * noisy).astype(np.int16), self.rate, format="FLAC")
        return {"bytes": buffer.getvalue(), "path": f"{self.said.source[number]}.flac"}

    def _digit(self, number: int) -> int:
        return int(self.shown.digits[number])


def principal_components(pictures: np.ndarray, energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and leading principal axes (D, K) of uint8 pictures (N, H, W), D = H W.

    K is the smallest number of axes that hold the share `energy` of the variance.
    """
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    count, total = len(flat), flat.sum(0)
    # Sums of products of whole numbers have no rounding error, so no machine gets others.
    scatter = count * (flat.T @ flat) - np.outer(total, total)
    variance, axes = np.linalg.eigh(scatter)
    share = np.cumsum(variance[::-1].clip(0)) / max(variance.clip(0).sum(), 1e-300)
    kept = len(axes) if energy == 1 else min(len(axes), int((share < energy).sum()) + 1)
    return total / count, axes[:, ::-1][:, :kept]


def project(pictures: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W) without what lies off the axes (D, K), as uint8."""
    flat = pictures.reshape(len(pictures), -1) - mean
    kept = mean + (flat @ axes) @ axes.T
    return np.rint(kept).clip(0, 255).astype(np.uint8).reshape(pictures.shape)


def pair(left: np.ndarray, right: np.ndarray, rng: Generator, split: str = "train") -> np.ndarray:
    """For each of `left` (N,) the number of one of `right` (M,) of the same digit, (N,).

    Those of a digit take turns in random order, so that each comes equally often, give or take one.
    Raises `ValueError` for a digit that `right` lacks.
    """
    partners = np.empty(len(left), np.int64)
    for digit in np.unique(left):
        places, choices = np.flatnonzero(left == digit), np.flatnonzero(right == digit)
        if not len(choices):
            raise ValueError(f"no recording of the digit {digit} is left for the {split} pictures")
        turns = [rng.permutation(choices) for _ in range(-(-len(places) // len(choices)))]
        partners[places] = np.concatenate(turns)[: len(places)]
    return partners


def _with_validation(sides: dict[str, Side], seed: int, number: int) -> dict[str, Side]:
    """Move a part of each digit's training rows to a validation split; the rest keeps its order."""
    train = sides["train"]
    rng = default_rng([seed, 2, number])
    held = np.zeros(len(train.digits), bool)
    for digit in np.unique(train.digits):
        places = np.flatnonzero(train.digits == digit)
        held[rng.permutation(places)[: max(1, round(VALIDATION * len(places)))]] = True
    parts = train.part(np.flatnonzero(~held)), train.part(np.flatnonzero(held))
    return {"train": parts[0], "validation": parts[1], "test": sides["test"]}
