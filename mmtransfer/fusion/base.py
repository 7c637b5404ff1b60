"""The fusion contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmtransfer.features import Features, Fused
from mmtransfer.registry import Configurable, fusions, nearest

MISSING = ("learned", "mask")


def check_column(name: str) -> None:
    """Raise `ValueError` for a column whose name torch's containers keep for themselves."""
    if not name or "." in name or hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name):
        raise ValueError(f"{name!r} cannot name a column of a model: rename the column")


class Fusion(nn.Module, Configurable):
    """Joins the features of any number of modalities into one vector per sample.

    widths: D of each modality, by name; width: of the fused vector.  Names are kept in sorted
    order, so the order in which users list modalities never matters.  A fusion sees masks, never
    `None`, and batch mates must not influence each other.
    """

    #: False when the fusion needs only the pooled vector of each modality (the store keeps less)
    uses_tokens: bool = False

    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__()
        if not widths:
            raise ValueError("a fusion needs at least one modality, found none")
        if width < 1:
            raise ValueError(f"the width of a fusion must be at least 1, found {width}")
        for name in widths:
            check_column(name)
        self.widths = {name: widths[name] for name in sorted(widths)}
        self.width = width

    @property
    def modalities(self) -> list[str]:
        return list(self.widths)

    def forward(self, features: dict[str, Features]) -> Fused:
        raise NotImplementedError(f"{type(self).__name__} needs forward(features) -> Fused")

    def head(self, build: Callable[[int], nn.Module]) -> nn.Module:
        """The head of a task, given what makes one for a width."""
        return build(self.width)

    def decide(self, head: nn.Module, fused: Fused) -> Tensor:
        """Logits (B, C) of what `head` made."""
        logits: Tensor = head(fused.vector)
        return logits

    def standardise(self, statistics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Take per-modality mean (D,) and deviation (D,) of the training features, if of use.

        Called before each training, with those of frozen encoders; only the first call may change
        what the fusion computes.
        """


class Standardise(nn.Module):
    """Subtract a mean and divide by a deviation fitted on the training features; identity before.

    Linear probes of pretrained features depend on it (Kornblith et al., CVPR 2019).
    """

    mean: Tensor
    deviation: Tensor
    settled: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("settled", torch.tensor(False))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Take mean (D,) and deviation (D,)."""
        self.mean.copy_(mean)
        # A feature that never varies carries nothing and must not be blown up.
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def settle(scales: nn.ModuleDict, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Fit each scale once, before what is above it trains, which depends on it from then on.

    One without mean (D,) and deviation (D,) stays the identity for good.
    """
    for name, scale in scales.items():
        assert isinstance(scale, Standardise)
        if name in statistics and not scale.settled:
            scale.fit(*statistics[name])
        scale.settled.fill_(True)


class Projected(Fusion):
    """Base of fusions that standardise and project each modality to one width.

    dropout: on the standardised features before the projection
    missing: what stands for an absent modality, a "learned" vector or, with "mask", nothing
    inner: width of the projections, by default that of the fusion
    """

    #: what an absent vector starts from: what changes nothing where vectors are joined
    neutral: float = 0.0

    def __init__(
        self,
        widths: dict[str, int],
        width: int,
        dropout: float = 0.0,
        missing: str = "learned",
        inner: int | None = None,
    ) -> None:
        super().__init__(widths, width)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), found {dropout}")
        if missing not in MISSING:
            raise ValueError(f"unknown missing {missing!r}.{nearest(missing, MISSING)}")
        self.dropout, self.missing = dropout, missing
        inner = width if inner is None else inner
        self.scales = nn.ModuleDict({name: Standardise(d) for name, d in self.widths.items()})
        self.projections = nn.ModuleDict(
            {name: nn.Linear(d, inner) for name, d in self.widths.items()}
        )
        if missing == "learned":
            self.absent = nn.ParameterDict(
                {name: nn.Parameter(torch.full((inner,), self.neutral)) for name in self.widths}
            )
        self.drop = nn.Dropout(dropout)

    def standardise(self, statistics: dict[str, tuple[Tensor, Tensor]]) -> None:
        settle(self.scales, statistics)

    def stand_in(self, name: str, like: Tensor) -> Tensor:
        """What an absent modality gives, of the shape of `like` (..., D)."""
        if self.missing == "learned":
            return self.absent[name].expand_as(like)
        return torch.full_like(like, self.neutral)


class PooledFusion(Projected):
    """Base of fusions on pooled vectors."""

    def project(self, features: dict[str, Features]) -> tuple[Tensor, Tensor]:
        """-> vectors (B, M, inner), present (B, M), in the order of `modalities`."""
        vectors, present = [], []
        for name in self.modalities:
            here = features[name].present.unsqueeze(1)  # (B, 1)
            x = self.projections[name](self.drop(self.scales[name](features[name].pooled())))
            vectors.append(torch.where(here, x, self.stand_in(name, x)))
            present.append(here)
        return torch.stack(vectors, 1), torch.cat(present, 1)


def voting(present: Tensor) -> Tensor:
    """(B, M) bool: the modalities that count, those present; all in a row that has none."""
    return present | ~present.any(1, keepdim=True)


def build_fusion(
    spec: str | Mapping[str, Any] | Fusion, widths: dict[str, int], width: int, **options: Any
) -> Fusion:
    """A fusion by name, as `{"name": ..., option: value}`, or as it is."""
    if isinstance(spec, Fusion):
        return spec
    fusion: Fusion = fusions.build(spec, widths, width, **options)
    return fusion
