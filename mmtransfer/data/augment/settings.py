"""Options of augmentations: switched on, off, or written out, and checked at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmtransfer.registry import check_options

Change = TypeVar("Change")


def configure(factory: Callable[..., Change], setting: Any, what: str) -> Change | None:
    """`factory` with its defaults for True, with the options of a mapping, None for False.

    Raises `ValueError` for anything else, and for an unknown option with the nearest valid one.
    """
    if isinstance(setting, bool):
        return factory() if setting else None
    if not isinstance(setting, Mapping):
        raise ValueError(f"{what} must be true, false or its options, found {setting!r}")
    check_options(factory, setting, what)
    return factory(**setting)


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raise `ValueError` unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], found {value!r}")


def check_count(name: str, value: Any, high: int | None = None) -> None:
    """Raise `ValueError` unless `value` is a whole number from 0 (to `high`)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 0 or (high is not None and value > high):
        span = "not below 0" if high is None else f"from 0 to {high}"
        raise ValueError(f"{name} must be a whole number {span}, found {value!r}")
