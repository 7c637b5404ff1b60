"""The features of a set of encoders as one: what a set would know, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
    rows = len(features)
    mask = np.ones(rows, bool) if present is None else np.asarray(present)
    if mask.shape != (rows,) or mask.dtype != bool:
        raise ValueError(
            f"present must be bool of shape ({rows},), found {mask.dtype} {mask.shape}"
        )
    if components is not None and components < 1:
        raise ValueError(f"components must be at least 1, found {components}")
    if not mask.any():
        raise ValueError("no row has this modality: leave it out")
    found = as_features(np.asarray(features)[mask], least=1)
    mean, deviation = found.mean(0), found.std(0)
    # What rounding leaves of a constant column is no deviation.
    constant = deviation <= 1e-7 * np.abs(found).max(0)
    scaled = np.where(constant, 0.0, (found - mean) / np.where(constant, 1.0, deviation))
    scaled /= np.sqrt(found.shape[1])
    if components is not None and components < found.shape[1]:
        _, axes = np.linalg.eigh(scaled.T @ scaled)
        scaled = scaled @ axes[:, ::-1][:, :components]
    block = np.zeros((rows, scaled.shape[1]))
    block[mask] = scaled
    if mask.all():
        return block
    return np.concatenate([block, ((mask - mask.mean()) / mask.std())[:, None]], 1)
