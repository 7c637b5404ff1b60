"""How long the values of a row are, measured without decoding them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtransfer.encoders.decoding import Waveform, is_file


def value_length(value: Any, files: bool = False) -> int:
    """Characters of a text, bytes or samples of a sound, items of a sequence; 0 if missing.

    files: texts are paths, whose files count with their size
    """
    if value is None:
        return 0
    if isinstance(value, Mapping):
        for key in ("bytes", "array", "path"):
            if value.get(key) is not None:
                return value_length(value[key], files=True)
        return 0
    if isinstance(value, Waveform):
        return len(value.samples)
    if files and isinstance(value, str | Path):
        return Path(value).stat().st_size if is_file(value) else 0
    try:
        return len(value)
    except TypeError:
        return 1  # a number


def column_lengths(values: Iterable[Any], files: bool = False) -> Tensor:
    """(N,) float32 length of each value of a column."""
    return torch.from_numpy(np.fromiter((value_length(v, files) for v in values), np.float32))


def joint_lengths(columns: Sequence[Tensor]) -> Tensor:
    """(N,) one length per row: that of its relatively longest value.

    Each column is scaled by the mean over the rows that have it, as a second of sound and a word
    are no common unit.
    """
    scaled = [c / c[c > 0].mean() if bool((c > 0).any()) else c for c in columns]
    return torch.stack(scaled).amax(0)
