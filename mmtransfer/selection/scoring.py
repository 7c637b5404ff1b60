"""Scores of sets of encoders on the labelled rows of one task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtransfer.data.rows import Rows, column
from mmtransfer.registry import nearest, scores
from mmtransfer.selection.arrays import Array, Numbers
from mmtransfer.selection.candidates import Encoded, EncoderSet
from mmtransfer.selection.joined import Standard
from mmtransfer.selection.scores.probe import found_unseen, found_without
from mmtransfer.tasks.base import Task
from mmtransfer.tasks.classification import IGNORE

PROBE = "linear_probe"
#: of fewer labelled validation rows the accuracy says less than that of training rows left out
LEAST_UNSEEN = 50


class Scorer:
    """What a set of encoders is worth, before training.

    splits: "train", and "validation" where the score looks at unseen rows
    labelled: how many training rows have a label; basis: what was scored, in words

    "linear_probe" is the accuracy on validation rows where there are enough, else on training rows
    that are left out; every other score is of the training rows.
    """

    def __init__(
        self,
        score: str,
        splits: Mapping[str, Rows],
        name: str,
        task: Task,
        most_rows: int,
        components: int | None,
        seed: int,
    ) -> None:
        self.measure = feature_score(score)
        self.score, self.components = score, components
        self.rows: dict[str, Numbers] = {}
        self.codes: dict[str, Numbers] = {}
        self.blocks: dict[tuple[str, str, str], Array] = {}
        for split in ("train", "validation") if score == PROBE else ("train",):
            if split not in splits:
                continue
            codes = np.asarray(task.encode(list(column(splits[split], name))))
            kept = np.flatnonzero(codes != IGNORE)
            if split == "train":
                self.labelled, self.classes = len(kept), len(np.unique(codes[kept]))
                if self.classes < 2:
                    raise ValueError(
                        f"the {self.labelled} labelled training rows have one class in {name!r}: "
                        "there is nothing to tell apart"
                    )
            elif len(kept) < LEAST_UNSEEN:
                continue
            if len(kept) > most_rows:
                kept = np.sort(np.random.default_rng(seed).choice(kept, most_rows, replace=False))
            self.rows[split], self.codes[split] = kept, codes[kept]
        last = list(self.rows)[-1]
        left_out = ", each left out" if score == PROBE and last == "train" else ""
        self.basis = f"{len(self.rows[last])} {last} rows{left_out}"

    def add(self, name: str, spec: str, encoded: Mapping[str, Encoded]) -> None:
        """Take up the features of an encoder, by split.

        Raises `ValueError` for a column that is missing in all labelled rows.
        """
        standard = None
        for split, kept in self.rows.items():
            features, present = (a[kept] for a in (encoded[split].features, encoded[split].present))
            if standard is None:
                if not present.any():
                    raise ValueError(
                        f"column {name!r} is missing in all labelled rows: leave it out"
                    )
                standard = Standard.of(features, present, self.components)
            self.blocks[split, name, spec] = standard(features, present)

    def __call__(self, chosen: EncoderSet) -> tuple[float, NDArray[np.bool_] | None, int]:
        """Score, for accuracies the rows that were told, and the width of the features."""
        sides = {
            split: np.concatenate([self.blocks[split, *pair] for pair in chosen.items()], 1)
            for split in self.rows
        }
        train, codes = sides["train"], self.codes["train"]
        width = train.shape[1]
        if self.score != PROBE:
            return self.measure(train, codes), None, width
        if "validation" in sides:
            told = found_unseen(train, codes, sides["validation"], self.codes["validation"])
        else:
            told = found_without(train, codes)
        return float(told.mean()), told, width


def feature_score(name: str) -> Callable[[Any, Any], float]:
    """The score of this name.  Raises `ValueError` if there is none, or it is not of features."""
    fitting = [n for n in scores.names() if takes_features(n)]
    if name in scores and name not in fitting:
        raise ValueError(f"score {name!r} is not of features.{nearest(name, fitting)}")
    return scores.get(name)


def takes_features(name: str) -> bool:
    return next(iter(inspect.signature(scores.get(name)).parameters)) == "features"
