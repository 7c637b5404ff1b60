"""Soft labels: several labels of one row, each with its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Soft:
    """A training target that is `((label, share), ...)`; the shares add up to 1.

    Raises `ValueError` when they do not.
    """

    parts: tuple[tuple[Any, float], ...]

    def __post_init__(self) -> None:
        shares = [share for _, share in self.parts]
        if min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-4:
            raise ValueError(f"shares of labels must be positive and add up to 1, found {shares}")


def mix_labels(first: Any, second: Any, share: float) -> Soft:
    """The first target at its share and the second at the rest; each is a label or `Soft`."""
    scaled = [(label, share * part) for label, part in parts(first)]
    return Soft((*scaled, *((label, (1 - share) * part) for label, part in parts(second))))


def parts(target: Any) -> tuple[tuple[Any, float], ...]:
    return target.parts if isinstance(target, Soft) else ((target, 1.0),)


def class_shares(
    values: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor], classes: int, ignore: int
) -> Tensor:
    """Labels, soft or not, -> (B, C) shares of the classes; rows of `ignore` where unlabelled.

    encode: labels -> (B,) class numbers, `ignore` where unlabelled
    """
    split = [parts(value) for value in values]
    codes = encode([label for row in split for label, _ in row])
    shares = torch.tensor([share for row in split for _, share in row])
    rows = torch.tensor([b for b, row in enumerate(split) for _ in row])
    known = codes != ignore
    found = torch.zeros(len(split), classes)
    found.index_put_((rows[known], codes[known]), shares[known], accumulate=True)
    found[rows[~known]] = ignore
    return found
