"""What each modality contributes: Shapley values, for a data set and for each prediction.

The value of a subset of modalities is what the model reaches with only these present.  A modality's
contribution is the mean of what it adds over all orders in which the modalities may join (Shapley
1953), so contributions add up to value(all) - value(none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtransfer.evaluation.bootstrap import Interval, bootstrap, mean_of
from mmtransfer.features import proper_subsets
from mmtransfer.methods.agm import shapley
from mmtransfer.registry import nearest

#: values or logits by subset of the modalities, () being none, names in the order of the modalities
BySubset = Mapping[tuple[str, ...], Tensor]

WORTHS = ("accuracy", "log_likelihood")
SCALES = ("probability", "logit")


def shares(values: BySubset, modalities: Sequence[str]) -> Tensor:
    """Values (N,) of all 2^M subsets -> contributions (N, M), float64.

    Raises `ValueError` if a subset is lacking.
    """
    order = [*proper_subsets(modalities), tuple(modalities)]
    lacking = [s for s in ((), *order) if s not in values]
    if lacking:
        raise ValueError(f"no value for {len(lacking)} subsets of the modalities, {lacking[0]!r}")
    none = values[()].double()
    gains = torch.stack([values[s].double() - none for s in order], 1)  # (N, 2^M - 1)
    present = torch.ones(len(none), len(modalities), dtype=torch.bool)
    return shapley(gains.unsqueeze(2), present, modalities).squeeze(2)


def worth(logits: Tensor, targets: Tensor, kind: str = "accuracy") -> Tensor:
    """Of each row (N,): whether it is right, or the log-likelihood of its label in nats."""
    if kind not in WORTHS:
        raise ValueError(f"unknown worth {kind!r}.{nearest(kind, WORTHS)}")
    if kind == "accuracy":
        return (logits.argmax(1) == targets).double()
    return logits.double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)


@dataclass(frozen=True)
class Contributions:
    """of_modalities adds up to all - none; intervals are bootstrap intervals over rows."""

    all: float
    none: float
    of_modalities: dict[str, Interval]


def contributions(
    logits: BySubset,
    targets: Tensor,
    modalities: Sequence[str],
    kind: str = "accuracy",
    **options: Any,
) -> Contributions:
    """Contributions to accuracy or mean log-likelihood of labelled rows (Hu et al., NeurIPS 2022).

    Logits (N, C) by subset and targets (N,); a modality that a row does not have adds nothing to
    it.  options: those of `bootstrap`
    """
    values = {kept: worth(z, targets, kind) for kept, z in logits.items()}
    found = bootstrap(mean_of(shares(values, modalities)), len(targets), **options)
    return Contributions(
        float(values[tuple(modalities)].mean()),
        float(values[()].mean()),
        dict(zip(modalities, found, strict=True)),
    )


@dataclass(frozen=True)
class Explained:
    """Of each row: predicted (N,) class, its value with all and without any modality (N,), and
    contributions (N, M), which add up to their difference."""

    predicted: Tensor
    all: Tensor
    none: Tensor
    contributions: Tensor


def explain(logits: BySubset, modalities: Sequence[str], scale: str = "probability") -> Explained:
    """What each modality contributes to the probability, or logit, of the predicted class."""
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}.{nearest(scale, SCALES)}")
    predicted = logits[tuple(modalities)].argmax(1)

    def value(z: Tensor) -> Tensor:
        z = z.double().softmax(1) if scale == "probability" else z.double()
        return z.gather(1, predicted[:, None]).squeeze(1)

    values = {kept: value(z) for kept, z in logits.items()}
    return Explained(predicted, values[tuple(modalities)], values[()], shares(values, modalities))
