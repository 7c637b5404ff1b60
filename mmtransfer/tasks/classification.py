"""One label out of several classes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from mmtransfer.registry import nearest, register_task
from mmtransfer.tasks.base import Task
from mmtransfer.tasks.soft import Soft, class_shares

IGNORE = -100


def unlabelled(value: Any) -> bool:
    return value is None or bool(value != value)  # NaN of any float type


def plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


@register_task("classification")
class Classification(Task):
    """Single-label classification with cross-entropy.

    classes: labels in output order, or None to take the sorted labels of the training column
    label_smoothing: mass moved from the label to all classes (Szegedy et al., CVPR 2016)
    """

    def __init__(
        self,
        classes: Sequence[Any] | None = None,
        weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), found {label_smoothing}")
        self.classes = [plain(label) for label in classes] if classes is not None else None
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            twice = sorted({str(c) for c in self.classes if self.classes.count(c) > 1})
            raise ValueError(f"classes are given twice: {', '.join(twice)}")
        self.weight, self.label_smoothing = weight, label_smoothing

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
        self.encode(values)  # a bad label shows now, not in the middle of training

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
        loss = F.cross_entropy(
            logits.float(),
            targets if targets.ndim == 1 else targets.clamp_min(0),
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=smoothing,
        )
        return torch.where(self.labelled(targets), loss, 0)  # it ignores no soft label

    def predict(self, logits: Tensor) -> list[dict[str, Any]]:
        best, code = logits.float().softmax(-1).max(-1)
        pairs = zip(code.tolist(), best.tolist(), strict=True)
        return [{"label": self._classes[c], "probability": p} for c, p in pairs]

    def metrics(self) -> MetricCollection:
        n = len(self._classes)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(n, average="micro"),
                "f1_macro": MulticlassF1Score(n, average="macro"),
            }
        )
