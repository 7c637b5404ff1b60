"""Random changes of texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtransfer.data.augment.settings import check_range
from mmtransfer.encoders.decoding import decode_text


class AugmentText:
    """Words are left out or change places (Wei & Zou, EDA, EMNLP 2019); one word always stays.

    drop: probability of each word to be left out
    swap: probability of each word to cause a swap of two words of the text
    """

    def __init__(self, drop: float = 0.1, swap: float = 0.0) -> None:
        check_range("drop", drop, 0, 1)
        check_range("swap", swap, 0, 1)
        self.drop, self.swap = drop, swap

    def __call__(self, value: Any, rng: np.random.Generator) -> str:
        words = decode_text(value).split()
        kept = [word for word in words if rng.random() >= self.drop] or words[:1]
        for _ in range(rng.binomial(len(kept), self.swap)):
            i, j = rng.integers(len(kept), size=2)
            kept[i], kept[j] = kept[j], kept[i]
        return " ".join(kept)
