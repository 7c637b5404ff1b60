"""Features and labels as scores and distances need them, or an error that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]


def as_features(features: Any, what: str = "features", least: int = 2) -> Array:
    """(N, D) as float64; what was given is never written to.

    Raises `ValueError` for another shape, values that are no finite numbers, or fewer than `least`
    rows.
    """
    found = np.asarray(features)
    if found.ndim != 2 or found.shape[1] == 0:
        raise ValueError(f"{what} must have shape (N, D) with D > 0, found {found.shape}")
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{what} must be real numbers, found {found.dtype}")
    if len(found) < least:
        raise ValueError(f"{what} must have at least {least} rows, found {len(found)}")
    found = found.astype(np.float64, copy=False)
    wrong = ~np.isfinite(found).all(1)
    if wrong.any():
        raise ValueError(
            f"{what} must be finite, found NaN or infinity in {wrong.sum()} of {len(found)} rows, "
            f"first in row {wrong.argmax()}"
        )
    return found


def as_classes(labels: Any, rows: int | None = None, what: str = "labels") -> Numbers:
    """(N,) labels of any hashable type as 0 .. C-1, in order of appearance: no class is empty.

    Raises `ValueError` for another shape, another number of rows, or a label that is None or NaN.
    """
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(values, list):
        values = list(values) if np.iterable(values) else [values]
    nested = next((v for v in values if isinstance(v, (list, np.ndarray))), None)
    if nested is not None or getattr(labels, "ndim", 1) != 1:
        shape = getattr(labels, "shape", (len(values), "..."))
        raise ValueError(f"{what} must have shape (N,), found {tuple(shape)}")
    unknown = [k for k, v in enumerate(values) if v is None or v != v]
    if unknown:
        raise ValueError(
            f"{what} must be known, found None or NaN in {len(unknown)} of {len(values)} rows, "
            f"first in row {unknown[0]}: leave these rows out"
        )
    if rows is not None and len(values) != rows:
        raise ValueError(
            f"{what} must have one entry per row: expected {rows}, found {len(values)}"
        )
    numbers = {v: k for k, v in enumerate(dict.fromkeys(values))}
    return np.array([numbers[v] for v in values], np.int64)


def checked(features: Any, labels: Any) -> tuple[Array, Numbers]:
    """`as_features` and `as_classes` of as many rows."""
    found = as_features(features)
    return found, as_classes(labels, len(found))


def one_hot(classes: Numbers) -> Array:
    """(N,) class numbers -> (N, C) zeros and ones."""
    return np.eye(int(classes.max()) + 1)[classes]


def class_means(features: Array, classes: Numbers) -> Array:
    """(C, D): the mean of the rows of each class."""
    onehot = one_hot(classes)
    means: Array = onehot.T @ features / onehot.sum(0)[:, None]
    return means


def principal(features: Array) -> tuple[Array, Array]:
    """Left singular vectors (N, R) and singular values (R,) of the R directions that there are."""
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    real = values > values[:1] * max(features.shape) * np.finfo(np.float64).eps
    return left[:, real], values[real]
