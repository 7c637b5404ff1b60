"""Candidate encoders of columns, their sets, and their features through the feature store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from mmtransfer.data.rows import Rows, column, columns_of, fingerprint_column
from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.selection.arrays import Array
from mmtransfer.training.features import Extraction, stored_features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.progress import Progress
from mmtransfer.training.run import no_column
from mmtransfer.training.setup import make_accelerator

TIMED_ROWS = 8

#: the encoder of each column of a set, by its specification
EncoderSet = Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """Pooled features (N, D) of a column under an encoder, and the rows (N,) that have it."""

    features: Array
    present: Array


def by_column(
    given: Sequence[str] | Mapping[str, str | Sequence[str]], rows: Rows, targets: Iterable[str]
) -> dict[str, list[str]]:
    """Specifications by the columns that they are for, in the order given.

    given: by column, or a list of `specification` or `column=specification`; one without a column
        is for the column, other than the targets, whose values it can read
    Raises `ValueError` for unknown columns, for targets, and for an encoder without a column that
    reads none or more than one: another column of labels must not become an input by itself.
    """
    names = columns_of(rows)
    if isinstance(given, Mapping):
        pairs = [
            (name, spec)
            for name, specs in given.items()
            for spec in ([specs] if isinstance(specs, str) else specs)
        ]
    else:
        inputs = [name for name in names if name not in set(targets)]
        pairs = [named(word, names) or (only_readable(word, rows, inputs), word) for word in given]
    sorted_in: dict[str, list[str]] = {}
    for name, spec in pairs:
        if name not in names:
            raise no_column(name, rows)
        if name in set(targets):
            raise ValueError(f"{name!r} is what is to be learned: it cannot be an input as well")
        known = sorted_in.setdefault(name, [])
        if spec not in known:
            known.append(spec)
    if not any(sorted_in.values()):
        raise ValueError("no encoder is given: name at least one")
    return {name: specs for name, specs in sorted_in.items() if specs}


def named(word: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Column and specification of `column=specification`, None for a specification alone."""
    name = max((n for n in names if word.startswith(f"{n}=")), key=len, default=None)
    if name is not None:  # any name that there is, even with the marks of a specification
        return name, word[len(name) + 1 :]
    name, equals, spec = word.partition("=")
    return (name, spec) if equals and not any(mark in name for mark in ":?/") else None


def only_readable(spec: str, rows: Rows, inputs: Sequence[str]) -> str:
    """The one column that an encoder can read.  Raises `ValueError` for none and for several."""
    if not inputs:
        raise ValueError(f"encoder {spec!r} has nothing to read: all columns are targets")
    try:
        found = readable(spec, rows, inputs)
    except ValueError as error:
        name, equals, _ = spec.partition("?")[0].partition("=")
        if not equals:
            raise
        raise ValueError(
            f"{error} If {name!r} is meant as a column: {no_column(name, rows)} Encoders can be "
            f"given as JSON too, whatever a column is called: {json.dumps({inputs[0]: ['...']})}"
        ) from error
    if not found:
        raise ValueError(
            f"encoder {spec!r} reads no column of {', '.join(inputs)}: name one, as in "
            f"{inputs[0]}={spec}"
        )
    if len(found) > 1:
        raise ValueError(
            f"encoder {spec!r} reads {', '.join(found[:-1])} and {found[-1]}: write "
            f"{' or '.join(f'{name}={spec}' for name in found[:2])}"
        )
    return found[0]


def readable(spec: str, rows: Rows, names: Iterable[str]) -> list[str]:
    """The columns whose first value an encoder can read."""
    encoder, found = build_encoder(spec), []
    for name in names:
        value = next((v for v in column(rows, name) if v is not None), None)
        if value is not None and readable_by(encoder, value):
            found.append(name)
    return found


def readable_by(encoder: Encoder, value: Any) -> bool:
    try:
        encoder.collate([value])
    except Exception:  # whatever a decoder raises for what it does not know
        return False
    return True


def sets_of(encoders: Mapping[str, Sequence[str]], most: int | None = None) -> list[EncoderSet]:
    """All sets with at most one encoder per column, small ones first; the first `most` of them."""
    found = [
        dict(zip(names, specs, strict=True))
        for size in range(1, len(encoders) + 1)
        for names in combinations(encoders, size)
        for specs in product(*(encoders[name] for name in names))
    ]
    return list(found[:most])


def label_of(chosen: EncoderSet) -> str:
    """What a set is called in tables: its columns, with the last parts of their specifications."""
    return " + ".join(f"{name}: {_last(spec)}" for name, spec in chosen.items())


def _last(spec: str) -> str:
    parts = spec.partition("?")[0].rstrip("/").split("/")
    return "/".join(parts[-2:] if parts[-1] == "model" else parts[-1:])  # a run leaves OUT/model


class Pool:
    """Encoders by column and specification, each built once, with the features that they give."""

    def __init__(self, encoders: Mapping[str, Sequence[str]], train: Rows, seed: int) -> None:
        self.encoders: dict[tuple[str, str], Encoder] = {}
        for name, specs in encoders.items():
            for spec in specs:
                set_seed(seed)  # random weights must not depend on what else is compared
                encoder = build_encoder(spec)
                encoder.fit(column(train, name))
                self.encoders[name, spec] = encoder
        self.digests: dict[tuple[int, str], str] = {}

    def encode(
        self, name: str, spec: str, rows: Rows, split: str, options: TrainingOptions
    ) -> Encoded:
        """Pooled features, through the store that training on frozen encoders reads too."""
        key = id(rows), name
        if key not in self.digests:
            self.digests[key] = fingerprint_column(rows, name)
        encoder = self.encoders[name, spec]
        wanted = Extraction(name, encoder, rows, split, self.digests[key], pooled=True)
        title = f"{split} {label_of({name: spec})}"
        with Progress(options.progress).bar(title, len(rows)) as advance:
            accelerator = make_accelerator(options, None)
            store, _ = stored_features(wanted, options, accelerator, advance)
        features = np.zeros((len(rows), store.width))
        present = np.zeros(len(rows), bool)
        for i in range(len(rows)):
            tokens = store[i]
            if tokens is not None:
                features[i], present[i] = tokens.mean(0), True
        return Encoded(features, present)

    def row_seconds(self, name: str, spec: str, rows: Rows, options: TrainingOptions) -> float:
        """What reading and encoding a row takes, measured on a few."""
        encoder = self.encoders[name, spec].eval()
        values: list[Any] = []
        for value in column(rows, name):
            if value is not None and readable_by(encoder, value):
                values.append(value)
            if len(values) == 2 * TIMED_ROWS:
                break
        if not values:
            return 0.0
        accelerator = make_accelerator(options, None)
        encoder.to(accelerator.device)
        halves = values[: len(values) // 2] or values, values[len(values) // 2 :]
        seconds = 0.0
        for half in halves:  # the first only warms up
            started = time.perf_counter()
            with torch.inference_mode(), accelerator.autocast():
                inputs = encoder.collate(half)
                encoder(**{k: v.to(accelerator.device) for k, v in inputs.items()})
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
            seconds = (time.perf_counter() - started) / len(half)
        return seconds
