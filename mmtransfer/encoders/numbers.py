"""Checks of options that are counts, sizes and rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number above zero, found {value!r}")


def check_widths(name: str, values: Any, least: int = 1) -> None:
    """Raise `ValueError` unless `values` lists at least so many whole numbers above zero."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or len(values) < least:
        layers = " of at least one layer" if least else ""
        raise ValueError(f"{name} must list the widths{layers}, found {values!r}")
    for value in values:
        check_count(name, value)


def check_share(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` lies in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), found {value!r}")


def check_finite(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, found {value!r}")


def check_channels(value: Any) -> None:
    """Raise `ValueError` unless pictures can have so many channels."""
    if isinstance(value, bool) or value not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), found {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a finite number above zero."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above zero, found {value!r}")


def check_seconds(name: str, value: Any, rate: int, samples: int = 1) -> None:
    """Raise `ValueError` unless `value` is a time that holds so many samples at `rate` Hz."""
    check_positive(name, value)
    if round(rate * value) < samples:
        raise ValueError(f"{name} must be at least {samples / rate:g}, found {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
