"""Heads that judge each modality by itself, outside of the fusion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmtransfer.fusion.base import Standardise, settle
from mmtransfer.tasks.base import Task


class UnimodalHeads(nn.Module):
    """The head of each task on the standardised pooled features of each modality.

    They belong to training, which looks through them at what an encoder gives without the others;
    predictions have no use for them, so that a saved model is without.
    """

    def __init__(self, widths: Mapping[str, int], tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.scales = nn.ModuleDict({name: Standardise(d) for name, d in widths.items()})
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleDict({task: t.head(d) for task, t in tasks.items()})
                for name, d in widths.items()
            }
        )

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, D) of each modality -> logits (B, M, C) of each task."""
        found: dict[str, list[Tensor]] = {}
        for name, heads in self.heads.items():
            x = self.scales[name](vectors[name])
            for task, head in heads.items():  # type: ignore[operator]
                found.setdefault(task, []).append(head(x))
        return {task: torch.stack(logits, 1) for task, logits in found.items()}

    def standardise(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take per-modality mean (D,) and deviation (D,) of the training features."""
        settle(self.scales, statistics)
