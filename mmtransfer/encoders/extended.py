"""A source network with new layers on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.numbers import check_count
from mmtransfer.features import Features
from mmtransfer.fusion.tokens import Block
from mmtransfer.registry import nearest, register_encoder

KINDS = ("auto", "conv", "transformer", "mlp")


class ConvLayer(nn.Module):
    """A 3 x 3 convolution on the square map that the tokens form, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Not batch norm, which stands still in pretrained encoders, nor group norm: it crashes in
        # the backward pass of channels-last maps that need no gradient (torch 2.11, CPU).
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Features) -> Features:
        x = Features(self.norm(features.tokens), features.mask).as_map()  # (B, D, H, H)
        change = Features.of_map(torch.relu(self.conv(x)))
        return Features(features.tokens + change.tokens, features.mask)


class DenseLayer(nn.Module):
    """Two linear layers on each token, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, features: Features) -> Features:
        return Features(features.tokens + self.layers(features.tokens), features.mask)


class AttentionLayer(nn.Module):
    """A transformer block: tokens attend to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = Block(width, next(heads for heads in (8, 4, 2, 1) if width % heads == 0))

    def forward(self, features: Features) -> Features:
        # where, not a product: padding may hold NaN, and attention multiplies it.
        x = torch.where(features.mask.unsqueeze(-1), features.tokens, 0)
        return Features(self.block(x, Features(x, features.mask)), features.mask)


LAYERS = {"conv": ConvLayer, "mlp": DenseLayer, "transformer": AttentionLayer}


@register_encoder("extended")
class ExtendedEncoder(Encoder):
    """New layers on top of any encoder, `extended:<its specification>` (Yosinski et al., 2014).

    added: so many layers, each with a residual and a stage of its own, above those of the source
    kind: "conv" on the square map that the tokens form, "transformer", "mlp" on each token, or
        "auto": the first of these that suits what the source gives

    Other options are those of the source: `extended:torchvision:resnet18?added=2&size=64`.
    Raises `ValueError` for an unknown kind, and convolutions where there is no square map.
    """

    source = "<specification of another encoder>"

    def __init__(self, inner: Encoder, added: int = 1, kind: str = "auto") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}.{nearest(kind, KINDS)}")
        check_count("added", added)
        found = suitable(inner) if kind in ("auto", "conv") else kind
        if kind == "conv" and found != "conv":
            raise ValueError(
                f"kind 'conv' needs a square map, which {type(inner).__name__} does not give here."
                " Valid: transformer, mlp, auto."
            )
        self.inner, self.added, self.kind = inner, added, found
        self.width, self.modality = inner.width, inner.modality
        self.collate = inner.collate
        self.layers = nn.ModuleList(LAYERS[found](inner.width) for _ in range(added))

    @classmethod
    def from_pretrained(
        cls, source: str, added: int = 1, kind: str = "auto", **options: Any
    ) -> ExtendedEncoder:
        """options: those of the source"""
        inner = build_encoder(source, **options)
        encoder = cls(inner, added, kind)
        encoder.pretrained = inner.pretrained
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        return [*self.inner.stages, *self.layers]

    @property
    def cuts(self) -> Sequence[int]:
        first = len(self.inner.stages)
        return [*self.inner.cuts, *range(first, first + self.added)]

    def forward(self, **inputs: Tensor) -> Features:
        """What the source's collate gives -> tokens (B, T, D) of its shape."""
        return self._run(self.inner(**inputs), 0, self.added)

    def below(self, depth: int, **inputs: Tensor) -> Features:
        first = len(self.inner.stages)
        if depth < first:
            return self.inner.below(depth, **inputs)
        return self._run(self.inner(**inputs), 0, depth - first)

    def above(self, depth: int, activations: Features) -> Features:
        first = len(self.inner.stages)
        if depth < first:
            return self._run(self.inner.above(depth, activations), 0, self.added)
        return self._run(activations, depth - first, self.added)

    def _run(self, features: Features, start: int, end: int) -> Features:
        for layer in list(self.layers)[start:end]:
            features = layer(features)
        return features

    def identity(self) -> str:
        return super().identity() + self.inner.identity()

    def config(self) -> dict[str, Any]:
        cls = type(self)
        options = {"added": self.added, "kind": self.kind, "inner": self.inner.config()}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", **options}

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.inner.save(directory / "inner")

    @classmethod
    def restore(cls, directory: Path, config: dict[str, Any]) -> ExtendedEncoder:
        return cls(Encoder.load(directory / "inner"), config["added"], config["kind"])


def suitable(inner: Encoder) -> str:
    """The kind of layers for what an encoder gives.

    Its answer to a picture that is no square tells whether all pictures become square maps.
    """
    if inner.modality != "image":
        return "transformer"
    device = next(inner.parameters()).device
    training = inner.training
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        inputs = inner.collate([Image.new("RGB", (64, 48))])
        tokens = inner.eval()(**{n: value.to(device) for n, value in inputs.items()}).tokens
    inner.train(training)
    if tokens.shape[1] == 1:
        return "mlp"
    side = round(tokens.shape[1] ** 0.5)
    return "conv" if side * side == tokens.shape[1] else "transformer"
