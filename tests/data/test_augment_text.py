"""Augmented texts: words go missing or change places, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mmtransfer.data.augment import AugmentText


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_words_are_dropped_at_their_rate_and_stay_in_order():
    words = [f"w{i:04}" for i in range(4000)]
    kept = AugmentText(0.3)(" ".join(words), draws()).split()
    assert kept == sorted(kept)
    assert len(kept) / 4000 == pytest.approx(0.7, abs=0.03)
    assert AugmentText(1.0)("only this", draws()) == "only"
    assert AugmentText(0.5)("", draws()) == ""


def test_swapped_words_are_the_same_words():
    words = [f"w{i}" for i in range(200)]
    swapped = AugmentText(0.0, 0.1)(" ".join(words), draws()).split()
    assert sorted(swapped) == sorted(words)
    moved = sum(a != b for a, b in zip(words, swapped, strict=True))
    assert 15 < moved < 65  # about two words for each of twenty swaps
