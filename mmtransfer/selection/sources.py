"""How far other data lie from these, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

from mmtransfer.data.rows import Rows, column
from mmtransfer.selection.candidates import Pool
from mmtransfer.selection.distances import DISTANCES
from mmtransfer.training.options import TrainingOptions

#: distances compare all pairs of rows
MOST_ROWS = 1500
LEAST_ROWS = 4
#: `{column: {distance: value}}`
Distances = Mapping[str, Mapping[str, float]]


def apart(
    pool: Pool,
    name: str,
    spec: str,
    source: Rows,
    where: str,
    target: Rows,
    training: TrainingOptions,
) -> dict[str, float]:
    """Every distance between the features that two sets of rows have in a column."""
    sides = []
    for rows, split in ((source, where), (target, "train")):
        encoded = pool.encode(name, spec, rows, split, training)
        found = encoded.features[encoded.present]
        generator = np.random.default_rng(training.seed)
        if len(found) > MOST_ROWS:
            found = found[generator.choice(len(found), MOST_ROWS, replace=False)]
        if len(found) < LEAST_ROWS:  # fewer than before encoding, where some are unreadable
            raise too_few(name, len(found), split)
        sides.append(found)
    return {key: measure(*sides) for key, measure in DISTANCES.items()}


def check_values(rows: Rows, names: Iterable[str], where: str) -> None:
    """Raise `ValueError` for a column that too few rows have."""
    for name in names:
        values = (v for v in column(rows, name) if v is not None)
        found = sum(1 for _ in islice(values, LEAST_ROWS))
        if found < LEAST_ROWS:
            raise too_few(name, found, where)


def too_few(name: str, count: int, where: str) -> ValueError:
    return ValueError(
        f"{where} has {name!r} in {count} rows: too few for a distance, which takes {LEAST_ROWS}"
    )


def farness(columns: Distances) -> float:
    """Mean proxy A-distance over the columns."""
    return float(np.mean([found["proxy_a"] for found in columns.values()]))
