"""What instance-based methods share: source rows that resemble the target count more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Look, Method, Observed
from mmtransfer.model import TransferModel

TINY = 1e-6


class Reweighting(Method):
    """Base of methods that give each training row a fixed weight, 1 on average.

    They compare the pooled features of all modalities, standardised over the rows of both sides
    that have them; an absent modality stands at its mean and says nothing.  What the model gives
    before training counts, so that encoders should be pretrained.
    """

    needs = ("unlabelled_rows", "numbered_rows")

    def __init__(self) -> None:
        self.weights = torch.ones(0)  # (N,) of the training rows, once they are known

    def weigh(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Standardised features (n, D), (m, D) -> weights (n,), at least 0, of any scale."""
        raise NotImplementedError

    def begin(self, model: TransferModel, look: Look) -> None:
        source, target = joined(look.observe("train"), look.observe("unlabelled"))
        found = np.asarray(self.weigh(source, target), dtype=np.float64)
        self.weights = torch.from_numpy(found / max(found.mean(), TINY)).float()

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = state["weights"]

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        self.weights = self.weights.to(batch.index.device)
        # To the loss that there is: what methods listed before have added stays as it is.
        more = torch.where(batch.index >= 0, self.weights[batch.index.clamp_min(0)] - 1, 0)
        for name, task in model.tasks.items():
            rows = task.loss(outputs.logits[name], batch.targets[name])
            loss = loss + task.weight * (more * rows).sum() / batch.counts[name]
        return loss


def joined(source: Observed, target: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Features of all modalities side by side, (n, D) and (m, D), standardised over both."""
    blocks = []
    for name, here in source.features.items():
        present = torch.cat([source.present[name], target.present[name]])
        rows = torch.cat([here, target.features[name]]).double()
        known = rows[present]
        if not len(known):
            continue
        deviation = known.std(0, correction=0)
        scaled = (rows - known.mean(0)) / torch.where(deviation > TINY, deviation, 1.0)
        blocks.append(torch.where(present.unsqueeze(1), scaled, 0))
    both = torch.cat(blocks, 1).numpy()
    count = len(next(iter(source.features.values())))
    return both[:count], both[count:]
