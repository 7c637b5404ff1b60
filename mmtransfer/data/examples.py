"""Encoded rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtransfer.features import Features


@dataclass
class Examples:
    """N rows: features by modality, tokens (N, T, D) and mask (N, T); targets (N,) by task."""

    features: dict[str, Features]
    targets: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.features.values())).mask)

    def pooled(self) -> Examples:
        """One token per row and modality."""
        found = {}
        for name, features in self.features.items():
            parts = [  # all at once would need several times the memory
                Features(t.float(), m).pool()
                for t, m in zip(features.tokens.split(256), features.mask.split(256), strict=True)
            ]
            tokens = torch.cat([part.tokens for part in parts])
            found[name] = Features(tokens, torch.cat([part.mask for part in parts]))
        return Examples(found, self.targets)

    def only(self, modalities: Sequence[str]) -> Examples:
        """The same rows as a model of these modalities sees them."""
        return Examples({name: self.features[name] for name in modalities}, self.targets)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean (D,) and deviation (D,) of the pooled features of the rows that have them."""
        found = {}
        for name, features in self.pooled().features.items():
            real = features.tokens[:, 0][features.present].double()
            found[name] = (real.mean(0).float(), real.std(0, correction=0).float())
        return found

    def save(self, path: Path) -> None:
        tensors = {f"target.{name}": target for name, target in self.targets.items()}
        for name, features in self.features.items():
            tensors |= {f"tokens.{name}": features.tokens, f"mask.{name}": features.mask}
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Examples:
        tensors = load_file(path)
        names = [key.removeprefix("tokens.") for key in tensors if key.startswith("tokens.")]
        targets = {k.removeprefix("target."): t for k, t in tensors.items() if k[:7] == "target."}
        features = {n: Features(tensors[f"tokens.{n}"], tensors[f"mask.{n}"]) for n in names}
        return cls(features, targets)
