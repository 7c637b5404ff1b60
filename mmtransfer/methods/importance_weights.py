"""Training rows weighed by how likely they are in the target, by a domain classifier."""

from __future__ import annotations

import numpy as np

from mmtransfer.methods.alignment import check_least
from mmtransfer.methods.reweighting import Reweighting
from mmtransfer.registry import register_method

FOLDS = 5


@register_method("importance_weights")
class ImportanceWeights(Reweighting):
    """Rows count by the ratio of densities of target and source (Bickel et al., JMLR 2009).

    A logistic regression tells rows of the target from rows of the source; the odds that it gives
    to a source row, over those of all rows, estimate the ratio (Sugiyama et al., 2012).  Each row
    is judged by a classifier that has not seen it, of five, as one that has would separate the
    sides by heart.  Ratios are clipped and divided by their mean.  Features as in `Reweighting`.

    clip: largest ratio, and one over the smallest
    strength: of the classifier, one over its penalty (C of scikit-learn)
    """

    def __init__(self, clip: float = 10.0, strength: float = 0.01) -> None:
        super().__init__()
        check_least("clip of importance_weights", clip, 1)
        if not strength > 0:
            raise ValueError(
                f"the strength of importance_weights must be positive, found {strength}"
            )
        self.clip, self.strength = clip, strength

    def weigh(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        rows = np.concatenate([source, target])
        side = np.repeat([0, 1], [len(source), len(target)])
        folds = min(FOLDS, len(source), len(target))
        if folds < 2:
            raise ValueError(
                "importance_weights needs at least 2 rows of each side, found "
                f"{len(source)} and {len(target)}"
            )
        odds: np.ndarray = cross_val_predict(
            LogisticRegression(C=self.strength, max_iter=1000),
            rows,
            side,
            cv=StratifiedKFold(folds, shuffle=True, random_state=0),
            method="decision_function",
        )[: len(source)]
        ratio = np.exp(np.clip(odds, -50, 50)) * len(source) / len(target)
        return ratio.clip(1 / self.clip, self.clip)
