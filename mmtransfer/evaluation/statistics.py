"""Intervals and tests over the seeds of an experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float], level: float = 0.95) -> float:
    """Half width of Student's confidence interval of the mean; NaN for a single value."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(values))


def paired_p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Two-sided p of Student's paired t-test; NaN for a single pair, 1 where nothing differs."""
    if len(values) != len(others):
        raise ValueError(f"pairs are needed, found {len(values)} and {len(others)} values")
    differences = [a - b for a, b in zip(values, others, strict=True)]
    if len(differences) < 2:
        return math.nan
    if max(differences) == min(differences):
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_rel(values, others).pvalue)
