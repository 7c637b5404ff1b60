"""Encoders answer as the starting model does, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.features import Batch, Features, Outputs
from mmtransfer.methods.base import Look, Method, Observed
from mmtransfer.methods.start import check_not_negative, frozen_copy
from mmtransfer.methods.teaching import mean_over_rows
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.registry import register_method


@register_method("delta")
class DELTA(Method):
    """Deep learning transfer using feature map with attention (DELTA, Li et al., ICLR 2019).

    Half of `weight` times the squared distance of the tokens of each encoder that trains from
    those of the starting model on the same inputs, augmented as they are: the mean over channels,
    real tokens and rows, in which an absent modality counts 0, summed over modalities.  The
    starting encoders run once more for every batch.

    attention: weigh the D channels by D times the softmax of how much worse a linear classifier on
        the starting features gets without each; else all weigh 1
    """

    needs = ("features", "trained_encoders")

    def __init__(self, weight: float = 1.0, attention: bool = False) -> None:
        check_not_negative("delta", weight=weight)
        self.weight, self.attention = weight, attention
        self._start: TransferModel | None = None
        self._channels: dict[str, Tensor] = {}

    def build(self, model: TransferModel) -> None:
        self._start = frozen_copy(model)

    def begin(self, model: TransferModel, look: Look) -> None:
        self._channels = channel_weights(model, look.observe("train")) if self.attention else {}

    def state_dict(self) -> dict[str, Any]:
        assert self._start is not None
        start = {n: t.to("cpu", copy=True) for n, t in self._start.state_dict().items()}
        return {"start": start, "channels": {n: w.cpu() for n, w in self._channels.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self._start is not None
        self._start.load_state_dict(state["start"])
        self._channels = dict(state["channels"])

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert self._start is not None
        assert outputs.features is not None
        self._start.to(batch.index.device)
        for name, features in outputs.features.items():
            if not is_trainable(model.encoders[name]) or name not in batch.inputs:
                continue
            dtype = features.tokens.dtype
            kind = features.tokens.device.type
            with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                start = self._start.encode(name, batch.inputs[name], len(batch))
            weights = self._channels.get(name)
            if weights is not None:
                weights = self._channels[name] = weights.to(batch.index.device)
            rows = squared_distances(features, start, weights)
            loss = loss + 0.5 * self.weight * mean_over_rows(rows, batch, features.present)
        return loss


def squared_distances(features: Features, start: Features, weights: Tensor | None) -> Tensor:
    """Tokens (B, T, D) twice, weights (D,) or None -> (B,) mean over real tokens and channels."""
    mask = features.mask.unsqueeze(2)
    away = torch.where(mask, features.tokens.float(), 0) - torch.where(
        mask, start.tokens.float(), 0
    )
    squared = away.square() if weights is None else away.square() * weights
    return Features(squared, features.mask).pooled().mean(1)


def channel_weights(model: TransferModel, seen: Observed) -> dict[str, Tensor]:
    """(D,) by modality: D times the softmax of what a linear classifier loses with each channel.

    The mean over the tasks; a modality of which no two classes are known has none.
    """
    found = {}
    for name, features in seen.features.items():
        losses = []
        for task, targets in ((t, seen.targets[n]) for n, t in model.tasks.items()):
            rows = seen.present[name] & task.labelled(targets)
            if targets.ndim == 1 and len(targets[rows].unique()) > 1:
                losses.append(increases(features[rows], targets[rows]))
        if losses:
            found[name] = torch.stack(losses).mean(0).softmax(0) * features.shape[1]
    return found


def increases(features: Tensor, targets: Tensor) -> Tensor:
    """(N, D), (N,) -> (D,) by how much the loss of a linear classifier rises without each."""
    from sklearn.linear_model import LogisticRegression

    deviation, mean = torch.std_mean(features, 0, correction=0)
    deviation = deviation.clamp_min(1e-6)
    fitted = LogisticRegression(max_iter=1000).fit((features - mean) / deviation, targets)
    classes, codes = torch.unique(targets, return_inverse=True)
    weight = torch.from_numpy(fitted.coef_).float() / deviation  # (C, D) on the features themselves
    bias = torch.from_numpy(fitted.intercept_).float() - weight @ mean
    if len(classes) == 2:  # a single row stands for the second class
        weight, bias = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))
    logits = features @ weight.T + bias
    whole = F.cross_entropy(logits, codes)
    without = [
        F.cross_entropy(logits - features[:, d, None] * weight[:, d], codes)
        for d in range(features.shape[1])
    ]
    return torch.stack(without) - whole
