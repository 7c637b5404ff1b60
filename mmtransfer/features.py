"""What flows: inputs of one modality, features of one modality, and the fused vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

#: one value per column
Row = dict[str, Any]


class Draw(int):
    """Number of a row that has come `before` times in this epoch, once or more."""

    before: int

    def __new__(cls, row: int, before: int) -> Draw:
        draw = super().__new__(cls, row)
        draw.before = before
        return draw

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.before


def draw_key(index: int) -> tuple[int, ...]:
    """What tells the draws of an epoch apart: the row and, of a repeated row, which draw it is."""
    return (row_number(index), *((index.before,) if isinstance(index, Draw) else ()))


def row_number(index: int) -> int:
    """The row that an index of a batch stands for; that of a filler is negative, `~row`."""
    return max(index, ~index)


@dataclass(frozen=True)
class Held:
    """In place of a target: the row is kept out of training, its target is only looked at."""

    target: Any


@dataclass(frozen=True)
class RowContext:
    """What may decide about training rows: seed of the run, epoch, names of the input columns.

    kinds: "image", "text", "audio" or None, by input column
    """

    seed: int
    epoch: int
    modalities: Sequence[str]
    kinds: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class Inputs:
    """Encoder inputs of the rows of a batch that have one modality.

    values: keyword arguments of the encoder's forward, for the present rows only
    rows: (P,) int64, which of the B rows of the batch they are; values behind the P-th belong to
        none, they only let an encoder take part in a step
    """

    values: dict[str, Tensor]
    rows: Tensor

    def joined(self, other: Inputs, size: int) -> Inputs:
        """With the rows of another batch, behind the `size` rows of this one."""
        values = {k: padded_cat(v, other.values[k]) for k, v in self.values.items()}
        return Inputs(values, torch.cat([self.rows, other.rows + size]))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Inputs:
        move = {k: v.to(device, non_blocking=non_blocking) for k, v in self.values.items()}
        return Inputs(move, self.rows.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Inputs:
        return Inputs({k: v.pin_memory() for k, v in self.values.items()}, self.rows.pin_memory())


@dataclass
class Features:
    """Tokens of one modality: `tokens (B, T, D)`, `mask (B, T)` bool, True where a token is real.

    An absent modality is an all-False mask; one vector per sample is T = 1.
    lengths: real tokens of each row, all of them first, where the host knows it anyway
    Raises `ValueError` when the shapes do not belong together.
    """

    tokens: Tensor
    mask: Tensor
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.mask.shape != self.tokens.shape[:2]:
            raise ValueError(
                f"features need tokens (B, T, D) and mask (B, T), found "
                f"{tuple(self.tokens.shape)} and {tuple(self.mask.shape)}"
            )

    @classmethod
    def of(cls, tokens: Tensor) -> Features:
        """Features in which every token is real; a (B, D) tensor counts as one token."""
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        return cls(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    @classmethod
    def of_map(cls, x: Tensor) -> Features:
        """The cells of square feature maps (B, D, H, H) as tokens (B, H * H, D)."""
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"feature maps must be square, found {tuple(x.shape)}")
        return cls.of(x.flatten(2).transpose(1, 2))

    def as_map(self) -> Tensor:
        """What `of_map` was given: (B, D, H, H), in channels-last order."""
        side = math.isqrt(self.tokens.shape[1])
        if side * side != self.tokens.shape[1]:
            raise ValueError(f"{self.tokens.shape[1]} tokens are no square feature map")
        return self.tokens.transpose(1, 2).unflatten(2, (side, side))

    @property
    def present(self) -> Tensor:
        """(B,) bool: rows that have this modality."""
        return self.mask.any(1)

    @property
    def width(self) -> int:
        return self.tokens.shape[2]

    def pooled(self) -> Tensor:
        """(B, D) mean over the real tokens; zeros for absent rows."""
        weight = self.mask.unsqueeze(-1).to(self.tokens.dtype)  # (B, T, 1)
        # where, not a product: padding may hold NaN and must not leak.
        real = torch.where(self.mask.unsqueeze(-1), self.tokens, 0)
        return real.sum(1) / weight.sum(1).clamp_min(1)

    def pool(self) -> Features:
        """The same features with T = 1."""
        return Features(self.pooled()[:, None], self.present[:, None])

    def hidden(self) -> Features:
        """The same rows without this modality."""
        return Features(self.tokens, torch.zeros_like(self.mask))

    def first(self, count: int) -> Features:
        return Features(self.tokens[:count], self.mask[:count])

    def behind(self, count: int) -> Features:
        return Features(self.tokens[count:], self.mask[count:])

    def scatter(self, rows: Tensor, size: int) -> Features:
        """Place these P rows into a batch of `size`; all other rows become absent."""
        tokens = self.tokens.new_zeros(size, *self.tokens.shape[1:])
        mask = self.mask.new_zeros(size, self.mask.shape[1])
        return Features(
            tokens.index_copy(0, rows, self.tokens), mask.index_copy(0, rows, self.mask)
        )

    @classmethod
    def absent(cls, size: int, width: int, like: Tensor) -> Features:
        """`size` rows without this modality, on the device of `like`."""
        tokens = torch.zeros(size, 1, width, device=like.device)
        return cls(tokens, torch.zeros(size, 1, dtype=torch.bool, device=like.device))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Features:
        tokens = self.tokens.to(device, non_blocking=non_blocking)
        return Features(tokens, self.mask.to(device, non_blocking=non_blocking), self.lengths)

    def pin_memory(self) -> Features:
        return Features(self.tokens.pin_memory(), self.mask.pin_memory(), self.lengths)


@dataclass
class Activations:
    """What lies below a cut of an encoder, of the rows of a batch that have its modality.

    features: (P, T, D') of the present rows only, ready to enter `stages[depth]`
    rows: (P,) int64, as in `Inputs`
    """

    features: Features
    depth: int
    rows: Tensor

    def joined(self, other: Activations, size: int) -> Activations:
        """With the rows of another batch, behind the `size` rows of this one."""
        tokens = padded_cat(self.features.tokens, other.features.tokens)
        mask = padded_cat(self.features.mask, other.features.mask)
        rows = torch.cat([self.rows, other.rows + size])
        return Activations(Features(tokens, mask), self.depth, rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Activations:
        features = self.features.to(device, non_blocking)
        return Activations(features, self.depth, self.rows.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Activations:
        return Activations(self.features.pin_memory(), self.depth, self.rows.pin_memory())


@dataclass
class Fused:
    """`vector (B, width)` for the heads and, where a fusion has them, `weights (B, M)`.

    parts: (B, M, width) of fusions whose heads judge each modality by itself, or (B, S, width) of
        those where each head has a stream of its own
    """

    vector: Tensor
    weights: Tensor | None = None
    parts: Tensor | None = None


@dataclass
class Outputs:
    """What the model gives: `logits {task: (B, C)}` and `weights (B, M)` or None.

    Only in training, and only where a method needs them (see `TransferModel.provide`), by task:

    unimodal: (B, M, C) logits of a head on each modality by itself, trained through the encoder
    unimodal_detached: the same logits, whose gradient stays in these heads
    subsets: (B, 2^M - 2, C) logits with only some modalities present, in the order of
        `proper_subsets`, without gradient

    and by themselves:

    features: of each modality, as they enter the fusion
    fused: (B, width) what the heads get
    unlabelled: outputs for a batch of the unlabelled target
    losses: by task what it adds to the loss that `on_loss` gets; a step fills this in, always
    """

    logits: dict[str, Tensor]
    weights: Tensor | None = None
    unimodal: dict[str, Tensor] | None = None
    unimodal_detached: dict[str, Tensor] | None = None
    subsets: dict[str, Tensor] | None = None
    features: dict[str, Features] | None = None
    fused: Tensor | None = None
    unlabelled: Outputs | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


torch.export.register_dataclass(Features)
torch.export.register_dataclass(Outputs)  # FSDP hangs its work on the tensors that it finds


def padded_cat(first: Tensor, second: Tensor) -> Tensor:
    """(P, ...) and (Q, ...) -> (P + Q, ...); what is shorter is padded with zeros at its end."""
    shape = [max(sizes) for sizes in zip(first.shape[1:], second.shape[1:], strict=True)]

    def pad(x: Tensor) -> Tensor:
        ends = [end for a, b in zip(shape, x.shape[1:], strict=True) for end in (a - b, 0)]
        return nn.functional.pad(x, ends[::-1]) if any(ends) else x

    return torch.cat([pad(first), pad(second)])


def proper_subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """The subsets of M modalities but the empty one and the whole, small ones first."""
    return [s for k in range(1, len(modalities)) for s in combinations(modalities, k)]


@dataclass
class Batch:
    """B rows on their way to the model.

    inputs: per modality, encoder inputs, activations within it or ready features; a modality that
        no row has is left out
    targets: per task (B,), or (B, C) with soft labels; unlabelled rows hold its ignore value
    index: (B,) int64 row numbers; a negative one marks a row that only fills up the batch
    unreadable: per column, row numbers whose value could not be read and counts as missing
    held: as targets, of rows that are kept out of training; left out where there are none

    A step adds:

    counts: per task what its labelled rows weigh, on average over the micro-batches and processes
        of the step, 1 if none: the sum of the rows' losses over it is the task's loss
    real: the rows that are no fillers, on average over the micro-batches and processes of the step:
        what a sum over the rows is divided by to count like the loss that `on_loss` gets
    unlabelled: as many rows of the unlabelled target, where a method needs it

    and, where a method needs something of each modality:

    present: (B, M) bool, rows that have each modality
    shares: per task (M,), what the labelled rows that have each modality weigh, on average over
        the micro-batches and processes of the step, 1 if none: what a sum over these rows is
        divided by to count like the loss that `on_loss` gets
    """

    inputs: dict[str, Inputs | Activations | Features]
    targets: dict[str, Tensor]
    index: Tensor
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    held: dict[str, Tensor] = field(default_factory=dict)
    present: Tensor | None = None
    shares: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    unlabelled: Batch | None = None
    real: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def having(self, modalities: Sequence[str]) -> Tensor:
        """(B, M) bool: the rows that have each of these modalities."""
        columns = []
        for name in modalities:
            found = self.inputs.get(name)
            if isinstance(found, Features):
                columns.append(found.present)
                continue
            here = torch.zeros(len(self), dtype=torch.bool)
            columns.append(here if found is None else here.index_fill(0, found.rows, True))
        return torch.stack(columns, 1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return Batch(
            {k: v.to(device, non_blocking) for k, v in self.inputs.items()},
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.targets.items()},
            self.index.to(device, non_blocking=non_blocking),
            self.unreadable,
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.held.items()},
            None if self.present is None else self.present.to(device, non_blocking=non_blocking),
            self.shares,
            self.counts,
            None if self.unlabelled is None else self.unlabelled.to(device, non_blocking),
            self.real,
        )

    def pin_memory(self) -> Batch:
        return Batch(
            {k: v.pin_memory() for k, v in self.inputs.items()},
            {k: v.pin_memory() for k, v in self.targets.items()},
            self.index.pin_memory(),
            self.unreadable,
            {k: v.pin_memory() for k, v in self.held.items()},
        )
