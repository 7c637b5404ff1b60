"""Candidates in order: what a set adds, which one is recommended and why, was it true."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mmtransfer.selection.candidates import EncoderSet, label_of
from mmtransfer.selection.scoring import Scorer
from mmtransfer.selection.sources import Distances, farness


@dataclass
class Candidate:
    """A set of encoders, at most one per column.

    score: predicted; gain: over the best of the same encoders less one, None for a single one
    row_milliseconds: of encoding one row; seconds: that predicting took; trained: score of the main
        task after training, where it was verified, and training_seconds that this took
    """

    encoders: dict[str, str]
    label: str
    score: float
    gain: float | None
    width: int
    row_milliseconds: float
    seconds: float
    trained: float | None = None
    training_seconds: float | None = None


def rank(
    scorer: Scorer,
    sets: Sequence[EncoderSet],
    row_seconds: Mapping[tuple[str, str], float],
) -> tuple[list[Candidate], dict[int, NDArray[np.bool_]]]:
    """The candidates, the best first, and by identity of each the rows that it tells.

    row_seconds: by column and specification
    """
    candidates = list[Candidate]()
    told = dict[int, NDArray[np.bool_]]()
    for chosen in sets:
        started = time.perf_counter()
        value, correct, width = scorer(chosen)
        seconds = time.perf_counter() - started
        cost = 1000 * sum(row_seconds[pair] for pair in chosen.items())
        candidate = Candidate(dict(chosen), label_of(chosen), value, None, width, cost, seconds)
        candidates.append(candidate)
        if correct is not None:
            told[id(candidate)] = correct
    name_apart(candidates)
    add_gains(candidates)
    return sorted(candidates, key=lambda c: -c.score), told


def name_apart(candidates: Sequence[Candidate]) -> None:
    """Whole specifications where short names would be the same."""
    labels = [candidate.label for candidate in candidates]
    for candidate, label in zip(candidates, labels, strict=True):
        if labels.count(label) > 1:
            candidate.label = " + ".join(f"{n}={s}" for n, s in candidate.encoders.items())


def add_gains(candidates: Sequence[Candidate]) -> None:
    """What each set adds to the best of its own sets with one encoder less."""
    known = {frozenset(c.encoders.items()): c.score for c in candidates}
    for candidate in candidates:
        own = frozenset(candidate.encoders.items())
        if len(own) > 1:
            candidate.gain = candidate.score - max(known[own - {pair}] for pair in own)


def recommend(candidates: Sequence[Candidate], told: Mapping[int, NDArray[np.bool_]]) -> Candidate:
    """The cheapest of those that are within one standard error of the best, row by row.

    candidates: the best first; told: by identity of a candidate, the rows (N,) that it tells, where
        the score is an accuracy; without, the best is recommended
    """
    best = candidates[0]
    good = [best]
    for other in candidates[1:] if told else ():
        behind = told[id(best)].astype(float) - told[id(other)]
        if behind.mean() <= stats.sem(behind):
            good.append(other)
    return min(good, key=lambda c: c.row_milliseconds)


def reasons_for(
    best: Candidate,
    candidates: Sequence[Candidate],
    score: str,
    distances: Mapping[str, Distances],
) -> list[str]:
    """Why these encoders, in plain words."""
    first = candidates[0]
    if best is first:
        found = [f"{best.label} has the highest {score}, {best.score:.3f}"]
    else:
        found = [
            f"{best.label} has a {score} of {best.score:.3f}, within one standard error of the "
            f"highest, {first.score:.3f} of {first.label}, and takes {best.row_milliseconds:.3g} "
            f"instead of {first.row_milliseconds:.3g} ms per row"
        ]
    alone = next((c for c in candidates if len(c.encoders) == 1), None)
    if len(best.encoders) > 1 and alone is not None:
        found.append(
            f"the best single encoder, {alone.label}, has {alone.score:.3f}: the others are "
            f"predicted to add {best.score - alone.score:.3f}"
        )
    if len(distances) > 1:
        order = ", ".join(f"{where} {farness(d):.2f}" for where, d in distances.items())
        found.append(f"the sources by their mean proxy A-distance, nearest first: {order}")
    return found


def correlation(candidates: Sequence[Candidate]) -> dict[str, float] | None:
    """Kendall's tau, and weighted by rank (Vigna, WWW 2015), over the trained candidates."""
    pairs = [(c.score, c.trained) for c in candidates if c.trained is not None]
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None
    predicted, found = zip(*pairs, strict=True)
    return {
        "kendall": float(stats.kendalltau(predicted, found).statistic),
        "weighted": float(stats.weightedtau(predicted, found).statistic),
        "trained": len(pairs),
    }
