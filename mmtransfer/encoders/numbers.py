"""Checks of options that are counts, sizes and rates."""

from __future__ import annotations

import math
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number above zero, found {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a finite number above zero."""
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above zero, found {value!r}")
