"""Pictures and recordings of digits, decoded: what `av_digits` is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtransfer.data.rows import Rows, column, columns_of, load_rows
from mmtransfer.encoders.decoding import decode_audio, decode_image
from mmtransfer.registry import nearest

LABELS = ("digit", "label")  # what sources call the digit


class Side(NamedTuple):
    """Pictures or recordings of one split.

    values: uint8 (N, H, W), or N waveforms float32 (L,) in [-1, 1]
    digits: (N,)
    source: where each comes from, as "train-7" for row 7 of the source's training rows
    """

    values: Any
    digits: np.ndarray
    source: list[str]

    def part(self, chosen: np.ndarray) -> Side:
        array = isinstance(self.values, np.ndarray)
        values = self.values[chosen] if array else [self.values[i] for i in chosen]
        return Side(values, self.digits[chosen], [self.source[i] for i in chosen])


def read_pictures(given: str | Path | Mapping[str, Rows]) -> dict[str, Side]:
    """Training and test pictures, (N, H, W) each."""
    sides, shapes = {}, set()
    for split, values, digits in _source(given, "image"):
        pictures = [np.asarray(decode_image(value).convert("L")) for value in values]
        shapes |= {picture.shape for picture in pictures}
        if len(shapes) > 1:
            raise ValueError(f"the pictures must be of one size, found {sorted(shapes)}")
        names = [f"{split}-{i}" for i in range(len(digits))]
        sides[split] = Side(np.stack(pictures), digits, names)
    return sides


def read_sounds(given: str | Path | Mapping[str, Rows]) -> tuple[dict[str, Side], int]:
    """Training and test recordings, and their sampling rate in Hz."""
    sides, rates = {}, set()
    for split, values, digits in _source(given, "audio"):
        waves = [decode_audio(value) for value in values]
        rates |= {wave.rate for wave in waves}
        names = [f"{split}-{i}" for i in range(len(digits))]
        sides[split] = Side([wave.samples for wave in waves], digits, names)
    if len(rates) > 1:
        raise ValueError(f"the recordings must have one sampling rate, found {sorted(rates)} Hz")
    return sides, rates.pop()


def _source(
    given: str | Path | Mapping[str, Rows], name: str
) -> Iterator[tuple[str, Iterable[Any], np.ndarray]]:
    """Split, values of the column `name` and digits (N,) of the training and test rows."""
    splits = given if isinstance(given, Mapping) else load_rows(given)
    where = "the given rows" if isinstance(given, Mapping) else str(given)
    for split in ("train", "test"):
        if not len(splits.get(split, ())):
            raise ValueError(f"{where}: no {split} rows.{nearest(split, splits)}")
        found = columns_of(splits[split])
        labels = next((label for label in LABELS if label in found), None)
        if name not in found or labels is None:
            expected = f"{name!r} and one of {', '.join(map(repr, LABELS))}"
            raise ValueError(f"{where}: expected the columns {expected}, found {found}")
        digits = list(column(splits[split], labels))
        wrong = [digit for digit in digits if digit not in range(10)]
        if wrong:
            raise ValueError(f"{where}: {labels!r} must be 0 to 9, found {wrong[0]!r}")
        yield split, column(splits[split], name), np.array(digits)
