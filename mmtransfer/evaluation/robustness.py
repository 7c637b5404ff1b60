"""What is left of a model's answers without some modalities, or with noise on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from mmtransfer.data.examples import Examples
from mmtransfer.features import Features

NOISE = (0.5, 1.0, 2.0)  # deviations of the noise, in those of the features

Found = TypeVar("Found")


def subsets(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All 2^M - 1 that are not empty, the whole first."""
    for size in range(len(modalities), 0, -1):
        yield from combinations(modalities, size)


def without(examples: Examples, kept: Sequence[str]) -> Examples:
    """The same rows with all other modalities absent."""
    found = {name: f if name in kept else f.hidden() for name, f in examples.features.items()}
    return Examples(found, examples.targets)


def noisy(examples: Examples, name: str, level: float, scale: Tensor, seed: int = 0) -> Examples:
    """Gaussian noise on the tokens of one modality; scale (D,) is the deviation of its features."""
    features = examples.features[name]
    noise = torch.randn(features.tokens.shape, generator=torch.Generator().manual_seed(seed))
    tokens = (features.tokens + level * scale * noise).to(features.tokens.dtype)
    return Examples({**examples.features, name: Features(tokens, features.mask)}, examples.targets)


def by_subset(
    look: Callable[[Examples], Found], examples: Examples
) -> dict[tuple[str, ...], Found]:
    """What `look` finds with each subset of the modalities, sorted names, the whole first."""
    names = sorted(examples.features)
    return {kept: look(without(examples, kept)) for kept in subsets(names)}


def by_noise(
    look: Callable[[Examples], Found],
    examples: Examples,
    deviations: Mapping[str, Tensor],
    levels: Sequence[float] = NOISE,
) -> dict[str, dict[float, Found]]:
    """What `look` finds with noise on each modality in turn, by level.

    deviations: (D,) of the features, by modality; a level counts in these
    """
    return {
        name: {level: look(noisy(examples, name, level, deviations[name])) for level in levels}
        for name in sorted(deviations)
        if name in examples.features
    }
