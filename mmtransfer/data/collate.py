"""Rows to a batch: missing values, unreadable values, encoder inputs, stored features, targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmtransfer.data.mixing import Mixed, PartnerError
from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.decoding import decode_image
from mmtransfer.features import (
    Activations,
    Batch,
    Features,
    Held,
    Inputs,
    Row,
    RowContext,
    draw_key,
    row_number,
)
from mmtransfer.registry import nearest
from mmtransfer.tasks.base import Task

ON_ERROR = ("raise", "missing")


class ReadError(ValueError):
    """A value of the data could not be read; the message names row and column."""


def read_errors(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader; a `ReadError` out of a worker without the worker's traceback."""
    try:
        yield from loader
    except ReadError as error:
        raise ReadError(str(error).strip().rsplit("ReadError: ", 1)[-1]) from error


class ActsOnRows(Protocol):
    """A method of the loop, as far as the data knows it."""

    def on_rows(self, rows: list[tuple[int, Row]], context: RowContext) -> None: ...


class Augmentation(Protocol):
    def __call__(self, value: Any, rng: np.random.Generator) -> Any: ...


class Stored:
    """Ready features `(T, D)` of one row, in place of a raw value.

    depth: of activations, the stage of the encoder that they enter; 0 for features
    """

    def __init__(self, tokens: np.ndarray, depth: int = 0) -> None:
        self.tokens, self.depth = tokens, depth


class Collate:
    """Turns `[(row number, row), ...]` into a `Batch`; runs in loader workers.

    on_error: "raise" names row and column of an unreadable value, "missing" counts it missing
    methods: their `on_rows` acts before anything is read
    augment: per column, a function of the value and a generator seeded by seed, epoch, row and, of
        a row that comes several times in an epoch, which time it is
    spare: per column, a value that its encoder reads where a batch has none, for no row's sake:
        processes that share out parameters need each other in every step
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        tasks: Mapping[str, Task],
        *,
        split: str = "",
        on_error: str = "raise",
        methods: Sequence[ActsOnRows] = (),
        augment: Mapping[str, Augmentation] | None = None,
        seed: int = 0,
        spare: Mapping[str, Any] | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"unknown on_error {on_error!r}.{nearest(on_error, ON_ERROR)}")
        # Only the collate functions travel to workers, not the weights.
        self.collates = {name: encoder.collate for name, encoder in encoders.items()}
        self.kinds = {name: encoder.modality for name, encoder in encoders.items()}
        self.tasks = dict(tasks)
        self.split, self.on_error, self.methods = split, on_error, tuple(methods)
        self.augment = dict(augment or {})
        self.seed, self.spare = seed, dict(spare or {})
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by running workers

    def __call__(self, rows: list[tuple[int, Row]]) -> Batch:
        context = RowContext(self.seed, int(self.epoch), list(self.collates), self.kinds)
        for method in self.methods:
            method.on_rows(rows, context)
        unreadable: dict[str, list[int]] = {}
        inputs = {}
        for name in self.collates:
            collated = self._inputs(name, rows, unreadable)
            if collated is not None:
                inputs[name] = collated
        targets, held = {}, {}
        for name, task in self.tasks.items():
            # A negative number marks a row that only fills up the batch: it counts for no task.
            values = [row.get(name) if index >= 0 else None for index, row in rows]
            targets[name] = task.encode([None if isinstance(v, Held) else v for v in values])
            if any(isinstance(value, Held) for value in values):
                looked_at = [v.target if isinstance(v, Held) else None for v in values]
                held[name] = task.encode(looked_at)
        index = torch.tensor([index for index, _ in rows])
        return Batch(inputs, targets, index, unreadable, held)

    def _inputs(
        self, name: str, rows: list[tuple[int, Row]], unreadable: dict[str, list[int]]
    ) -> Inputs | Activations | Features | None:
        values = [(b, i, row[name]) for b, (i, row) in enumerate(rows) if row.get(name) is not None]
        if not values:
            return self._without_rows(name)
        if isinstance(values[0][2], Stored):
            return collate_stored([(b, value) for b, _, value in values], len(rows))
        try:
            collated = self._read(name, values)
        except Exception:
            readable = self._readable(name, values, unreadable)
            if len(readable) == len(values):
                raise  # no single value is at fault
            if not readable:
                return self._without_rows(name)
            values, collated = readable, self._read(name, readable)
        return Inputs(collated, torch.tensor([b for b, _, _ in values]))

    def _without_rows(self, name: str) -> Inputs | Activations | None:
        if name not in self.spare:
            return None
        if isinstance(self.spare[name], Stored):
            return activations([self.spare[name]], [])
        values = self.collates[name]([self.spare[name]])
        return Inputs(values, torch.zeros(0, dtype=torch.int64))

    def _read(self, name: str, values: list[tuple[int, int, Any]]) -> dict[str, Tensor]:
        return self.collates[name]([self._value(name, draw_key(i), v) for _, i, v in values])

    def _value(self, name: str, draw: tuple[int, ...], value: Any) -> Any:
        """What the encoder's collate gets of a value: augmented and, if it is two, mixed."""
        if not isinstance(value, Mixed):
            return self._augmented(name, value, *draw)
        first = decode_image(self._augmented(name, value.first, *draw))
        try:
            second = decode_image(self._augmented(name, value.second, value.partner, *draw))
        except Exception as error:
            raise PartnerError(str(error), value.partner) from error
        return value.blend(first, second)

    def _augmented(self, name: str, value: Any, *draw: int) -> Any:
        if name not in self.augment:
            return value
        key = (self.seed, int(self.epoch), crc32(name.encode()), *draw)
        return self.augment[name](value, np.random.default_rng(key))

    def _readable(
        self, name: str, values: list[tuple[int, int, Any]], unreadable: dict[str, list[int]]
    ) -> list[tuple[int, int, Any]]:
        good = []
        for value in values:
            try:
                self._read(name, [value])
            except Exception as error:
                row = error.row if isinstance(error, PartnerError) else row_number(value[1])
                if self.on_error == "raise":
                    where = f"{self.split} row {row}".strip()
                    raise ReadError(
                        f"{where}, column {name!r} cannot be read: {error} "
                        "(on_error='missing' counts such values as missing)"
                    ) from error
                unreadable.setdefault(name, []).append(row)
            else:
                good.append(value)
        return good


def collate_stored(values: list[tuple[int, Stored]], size: int) -> Activations | Features:
    """Features of all `size` rows, or activations of those that have them."""
    if values[0][1].depth:
        return activations([value for _, value in values], [b for b, _ in values])
    tokens = [np.zeros((0, values[0][1].tokens.shape[1]), np.float32)] * size
    for b, value in values:
        tokens[b] = value.tokens
    return pad_tokens(tokens)


def activations(values: list[Stored], rows: list[int]) -> Activations:
    features = pad_tokens([value.tokens for value in values])
    return Activations(features, values[0].depth, torch.tensor(rows, dtype=torch.int64))


def pad_tokens(rows: list[np.ndarray]) -> Features:
    """Tokens (T_i, D) of each row, none for an absent one -> (B, T, D)."""
    tokens = [torch.from_numpy(np.array(row, dtype=np.float32)) for row in rows]
    lengths = tuple(len(t) for t in tokens)
    padded = pad_sequence(tokens, batch_first=True)  # (B, T, D)
    mask = torch.arange(padded.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    return Features(padded, mask, lengths)
