"""How far other data lie from these, column by column."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmtransfer.data.rows import Rows
from mmtransfer.selection.candidates import Pool
from mmtransfer.selection.distances import DISTANCES
from mmtransfer.training.options import TrainingOptions

#: distances compare all pairs of rows
MOST_ROWS = 1500
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
        if len(found) < 4:
            raise ValueError(f"{where} has {name!r} in {len(found)} rows: too few for a distance")
        sides.append(found)
    return {key: measure(*sides) for key, measure in DISTANCES.items()}


def farness(columns: Distances) -> float:
    """Mean proxy A-distance over the columns."""
    return float(np.mean([found["proxy_a"] for found in columns.values()]))
