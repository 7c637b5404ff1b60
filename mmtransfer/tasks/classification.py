"""One label out of several classes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.registry import nearest, register_task
from mmtransfer.tasks.base import Task
from mmtransfer.tasks.soft import Soft, class_shares

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

IGNORE = -100
BALANCED = "balanced"
SCORES = ("accuracy", "f1_macro", "auroc")


def unlabelled(value: Any) -> bool:
    return value is None or bool(value != value)  # NaN of any float type


def plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


@register_task("classification")
class Classification(Task):
    """Single-label classification with cross-entropy.

    classes: labels in output order, or None to take the sorted labels of the training column
    label_smoothing: mass moved from the label to all classes (Szegedy et al., CVPR 2016)
    class_weights: what a row of each class counts in the loss: `{class: weight}` (1 for the
        others), a list in output order, or "balanced" for N / (C * rows of the class) in the
        training column, as in scikit-learn; the mean loss is that of `F.cross_entropy(weight=...)`
    score: the metric by which the best epoch is chosen: "accuracy", "f1_macro", or "auroc", the
        mean over classes of the area under the ROC curve of each against the rest
    """

    def __init__(
        self,
        classes: Sequence[Any] | None = None,
        weight: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: str | Mapping[Any, float] | Sequence[float] | None = None,
        score: str = "accuracy",
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"unknown score {score!r}.{nearest(score, SCORES)}")
        self.score = score
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), found {label_smoothing}")
        self.classes = [plain(label) for label in classes] if classes is not None else None
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            twice = sorted({str(c) for c in self.classes if self.classes.count(c) > 1})
            raise ValueError(f"classes are given twice: {', '.join(twice)}")
        self.weight, self.label_smoothing = weight, label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None = None  # (C,), once the classes are known
        if isinstance(class_weights, str) and class_weights != BALANCED:
            raise ValueError(
                f"unknown class_weights {class_weights!r}.{nearest(class_weights, [BALANCED])}"
            )
        if self.classes is not None and not isinstance(class_weights, str):
            self._weights = self._given_weights()

    def fit(self, values: Sequence[Any]) -> None:
        if self.classes is None:
            labels = [plain(value) for value in values if not unlabelled(value)]
            kinds = sorted({type(label).__name__ for label in labels})
            if not labels:
                raise ValueError("the target column has no labelled row to learn classes from")
            if len(kinds) > 1 or kinds[0] not in ("str", "int", "bool", "float"):
                raise ValueError(
                    f"labels must be all text or all numbers, found {', '.join(kinds)}"
                )
            found = set(labels)
            self.classes = sorted(found)
        codes = self.encode(values)  # a bad label shows now, not in the middle of training
        if self.class_weights == BALANCED:
            counts = torch.bincount(codes[codes != IGNORE], minlength=len(self.classes))
            # A class that training never shows weighs like one that it shows once.
            self._weights = counts.sum().clamp_min(1) / (len(counts) * counts.clamp_min(1))
        else:
            self._weights = self._given_weights()

    def _given_weights(self) -> Tensor | None:
        """(C,) weights out of the option.  Raises `ValueError` if they do not fit the classes."""
        given = self.class_weights
        if given is None or isinstance(given, str):
            return None
        if isinstance(given, Mapping):
            codes = {str(label): code for code, label in enumerate(self._classes)}
            weights = [1.0] * len(codes)
            for label, weight in given.items():
                if str(label) not in codes:  # YAML and JSON have keys of text only
                    raise ValueError(
                        f"class_weights names no class: {label!r}.{nearest(str(label), codes)}"
                    )
                weights[codes[str(label)]] = weight
        else:
            weights = list(given)
        if len(weights) != len(self._classes):
            raise ValueError(
                f"class_weights must be {len(self._classes)} numbers, one per class, "
                f"found {len(weights)}"
            )
        for weight in weights:
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"class_weights must be positive numbers, found {weight}")
        return torch.tensor(weights)

    def _known_weights(self) -> Tensor | None:
        if self._weights is None and self.class_weights is not None:
            if self.class_weights == BALANCED:
                raise ValueError(
                    "the balanced class weights are not known yet: call fit(values), or give "
                    "class_weights as {class: weight}"
                )
            self._weights = self._given_weights()
        return self._weights

    def config(self) -> dict[str, Any]:
        """The arguments, with known weights as a list: JSON has no keys but text."""
        known = self.class_weights if self._weights is None else self._weights.tolist()
        return {**super().config(), "class_weights": known}

    @property
    def _classes(self) -> list[Any]:
        if self.classes is None:
            raise ValueError(
                "the classes are not known yet: call fit(values) or give classes=[...]"
            )
        return self.classes

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, len(self._classes))

    def encode(self, values: Sequence[Any]) -> Tensor:
        if any(isinstance(value, Soft) for value in values):  # (B, C) shares of the classes
            return class_shares(values, self.encode, len(self._classes), IGNORE)
        codes = {label: code for code, label in enumerate(self._classes)}
        encoded = []
        for value in values:
            if unlabelled(value):
                encoded.append(IGNORE)
            elif isinstance(value, Hashable) and value in codes:
                encoded.append(codes[value])
            else:
                shown = nearest(str(value), [str(label) for label in self._classes[:50]])
                raise ValueError(
                    f"label {value!r} is none of the {len(self._classes)} classes.{shown}"
                )
        return torch.tensor(encoded, dtype=torch.int64)

    def labelled(self, targets: Tensor) -> Tensor:
        return (targets if targets.ndim == 1 else targets[:, 0]) != IGNORE

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        weights = self._known_weights()
        loss = F.cross_entropy(
            logits.float(),
            targets if targets.ndim == 1 else targets.clamp_min(0),
            weight=None if weights is None else weights.to(logits.device, non_blocking=True),
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=smoothing,
        )
        return torch.where(self.labelled(targets), loss, 0)  # it ignores no soft label

    def loss_weight(self, targets: Tensor) -> Tensor:
        weights, known = self._known_weights(), self.labelled(targets)
        if weights is None:
            return known.float()
        weights = weights.to(targets.device, non_blocking=True)
        if targets.ndim == 2:  # shares of classes
            return targets.clamp_min(0) @ weights
        return torch.where(known, weights[targets.clamp_min(0)], 0)

    def predict(self, logits: Tensor) -> list[dict[str, Any]]:
        best, code = logits.float().softmax(-1).max(-1)
        pairs = zip(code.tolist(), best.tolist(), strict=True)
        return [{"label": self._classes[c], "probability": p} for c, p in pairs]

    def metrics(self) -> MetricCollection:
        from torchmetrics import Metric, MetricCollection
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassAUROC,
            MulticlassF1Score,
        )

        n = len(self._classes)
        if n < 2:
            raise ValueError(f"metrics need two classes or more, found only {self._classes[0]!r}")
        found: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(n, average="micro"),
            "f1_macro": MulticlassF1Score(n, average="macro"),
        }
        if self.score == "auroc":
            found["auroc"] = MulticlassAUROC(n, average="macro")
        return MetricCollection(found)
