"""Bootstrap intervals over rows, for any metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from mmtransfer.registry import nearest

METHODS = ("percentile", "bca")
CHUNK = 1_000_000  # row numbers that are held at a time

#: row numbers (K, n) of K samples -> (K,) values of a metric, or (K, S) of several
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its interval."""

    value: float
    low: float
    high: float


def mean_of(values: Tensor) -> Statistic:
    """The mean over rows of values (N,) or (N, S)."""
    exact = values.double()

    def statistic(rows: Tensor) -> Tensor:
        counts = torch.zeros(len(rows), len(exact), dtype=torch.float64)
        counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        return counts @ exact / rows.shape[1]

    return statistic


def each(metric: Callable[[Tensor], float]) -> Statistic:
    """A statistic of a metric that takes the row numbers (n,) of one sample; slower."""
    return lambda rows: torch.tensor([float(metric(sample)) for sample in rows])


def bootstrap(
    statistic: Statistic,
    rows: int,
    level: float = 0.95,
    method: str = "percentile",
    resamples: int = 2000,
    strata: Tensor | None = None,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of metrics, by resampling rows (Efron & Tibshirani 1993, chapters 13 and 14).

    level: how often an interval is to hold the truth
    method: "percentile"; "bca" also mends bias and skewness (Efron, JASA 1987), and needs the
        metric without each row in turn, in time that grows with the square of the rows
    strata: (N,) such as the class of each row; each sample has as many rows of every stratum
    Raises `ValueError` for an unknown method, no rows, or a level outside (0, 1).
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}.{nearest(method, METHODS)}")
    if rows < 1 or resamples < 1:
        raise ValueError(f"rows and resamples must be at least 1, found {rows} and {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), found {level}")
    if strata is not None and strata.shape != (rows,):
        raise ValueError(f"strata must be one per row ({rows},), found {tuple(strata.shape)}")
    value = _values(statistic, iter([torch.arange(rows)[None]]))[0]  # (S,)
    drawn = _values(statistic, _samples(rows, resamples, strata, seed))  # (R, S)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    found = []
    left_out = _values(statistic, _without_each(rows)) if method == "bca" else None
    for s in range(len(value)):
        probabilities = tails
        if left_out is not None:
            probabilities = _corrected(tails, value[s], drawn[:, s], left_out[:, s])
        low, high = np.quantile(drawn[:, s], probabilities)
        found.append(Interval(float(value[s]), float(low), float(high)))
    return found


def _values(statistic: Statistic, samples: Iterator[Tensor]) -> np.ndarray:
    parts = [statistic(sample).double().cpu() for sample in samples]
    whole = torch.cat(parts)
    return (whole[:, None] if whole.ndim == 1 else whole).numpy()


def _samples(rows: int, resamples: int, strata: Tensor | None, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.arange(rows)]
    if strata is not None:
        groups = [torch.nonzero(strata == s).flatten() for s in strata.unique()]
    size = max(1, CHUNK // rows)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        draws = [g[torch.randint(len(g), (count, len(g)), generator=generator)] for g in groups]
        yield torch.cat(draws, 1)


def _without_each(rows: int) -> Iterator[Tensor]:
    everything = torch.arange(max(rows - 1, 0))
    for missing in torch.arange(rows).split(max(1, CHUNK // rows)):
        yield everything + (everything >= missing[:, None])  # (K, n - 1)


def _corrected(
    tails: np.ndarray, value: float, drawn: np.ndarray, left_out: np.ndarray
) -> np.ndarray:
    """The probabilities whose quantiles bound the BCa interval."""
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    if not 0 < below < 1:  # the metric does not vary, or every sample is worse or better
        return tails
    bias = ndtri(below)
    lead = left_out.mean() - left_out
    spread = (lead**2).sum() ** 1.5
    skew = (lead**3).sum() / (6 * spread) if spread else 0.0
    normal = bias + ndtri(tails)
    corrected: np.ndarray = ndtr(bias + normal / (1 - skew * normal))
    return corrected
