"""The features of a set of encoders as one: what a set would know, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtransfer.selection.arrays import Array, as_features


def joined(
    features: Mapping[str, Any],
    present: Mapping[str, Any] | None = None,
    components: int | None = None,
) -> Array:
    """Standardised features of several encoders side by side, each as `standardised` gives them.

    features: (N, D_m) by name; present: (N,) bool by name, the rows that have this modality, by
        default all
    -> (N, sum of the D_m or `components`, and one for each modality that some row lacks)
    Raises `ValueError` for different numbers of rows, or a modality that no row has.
    """
    if not features:
        raise ValueError("there are no features to join")
    first, rows = next((name, len(given)) for name, given in features.items())
    blocks = []
    for name, given in features.items():
        if len(given) != rows:
            raise ValueError(
                f"features must be of the same rows: {first!r} has {rows}, {name!r} {len(given)}"
            )
        mask = None if present is None else present.get(name)
        try:
            blocks.append(standardised(given, mask, components))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return np.concatenate(blocks, 1)


def standardised(features: Any, present: Any = None, components: int | None = None) -> Array:
    """Features with mean 0, deviation 1 and, all together, variance 1 over the rows that have them.

    features (N, D), present (N,) bool.  The columns are divided by √D, so that beside others each
    encoder weighs alike, whatever its width.  A row without the modality has zeros there, which is
    the mean, and where there are such rows one more column tells them from the others.  What they
    hold is not looked at.

    components: keep at most so many principal components instead of the columns
    """
    return Standard.of(features, present, components)(features, present)


@dataclass(frozen=True)
class Standard:
    """What `standardised` does, learned from some rows, for others too.

    centre, scale: (D,); axes: (D, K) of the components, None for all columns
    share: of the rows that had the modality
    """

    centre: Array
    scale: Array
    axes: Array | None
    share: float

    @classmethod
    def of(cls, features: Any, present: Any = None, components: int | None = None) -> Standard:
        """Learn from features (N, D) and present (N,) bool, by default all."""
        if components is not None and components < 1:
            raise ValueError(f"components must be at least 1, found {components}")
        mask = _mask(features, present)
        if not mask.any():
            raise ValueError("no row has this modality: leave it out")
        found = as_features(np.asarray(features)[mask], least=1)
        centre, deviation = found.mean(0), found.std(0)
        # What rounding leaves of a constant column is no deviation.
        constant = deviation <= 1e-7 * np.abs(found).max(0)
        root = np.sqrt(found.shape[1])
        scale = np.where(constant, 0.0, 1 / (root * np.where(constant, 1.0, deviation)))
        axes = None
        if components is not None and components < found.shape[1]:
            scaled = (found - centre) * scale
            axes = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1][:, :components]
        return cls(centre, scale, axes, float(mask.mean()))

    def __call__(self, features: Any, present: Any = None) -> Array:
        """(N, D) -> (N, D or K, and one more where some of the rows learned from were absent)."""
        mask = _mask(features, present)
        found = np.asarray(features)[mask]
        scaled = (as_features(found, least=0) - self.centre) * self.scale
        if self.axes is not None:
            scaled = scaled @ self.axes
        block = np.zeros((len(mask), scaled.shape[1]))
        block[mask] = scaled
        if self.share == 1:
            return block
        deviation = np.sqrt(self.share * (1 - self.share))
        return np.concatenate([block, ((mask - self.share) / deviation)[:, None]], 1)


def _mask(features: Any, present: Any) -> NDArray[np.bool_]:
    """(N,) bool.  Raises `ValueError` for a mask of another kind or shape."""
    rows = len(features)
    mask = np.ones(rows, bool) if present is None else np.asarray(present)
    if mask.shape != (rows,) or mask.dtype != bool:
        raise ValueError(
            f"present must be bool of shape ({rows},), found {mask.dtype} {mask.shape}"
        )
    return mask
