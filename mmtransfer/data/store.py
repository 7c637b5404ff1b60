"""The feature store: features computed once, memory-mapped, keyed by data and encoder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 3
#: how numbers lie in the files, by precision; numpy knows no bfloat16
DTYPES = {"fp32": "<f4", "fp16": "<f2", "bf16": "<i2"}


def cache_directory(given: str | Path | None = None) -> Path:
    """Where stores live: as given, else `$MMTRANSFER_CACHE`, else `~/.cache/mmtransfer`."""
    return Path(given or os.environ.get("MMTRANSFER_CACHE") or "~/.cache/mmtransfer").expanduser()


def store_key(*identity: Any) -> str:
    """Name of the store of what this identity describes, ready for JSON."""
    text = json.dumps([FORMAT, *identity])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class FeatureStore(Sequence["np.ndarray | None"]):
    """Features of the rows of one column: `store[i]` is `(T_i, D)` float32, None where missing.

    A directory of shards: `tokens-k.bin` (tokens of consecutive rows, one after the other, no
    padding) and `ends-k.npy` (where each row ends), described by `store.json`, written last.

    depth: 0 for features; else the stage of the encoder that these activations enter
    Raises `FileNotFoundError` for a directory that is no complete store, `ValueError` for one whose
    files are not as they were written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.description = describe(directory)
        self.width: int = self.description["width"]
        self.depth: int = self.description["depth"]
        self.precision: str = self.description["precision"]
        self.unreadable: list[int] = self.description["unreadable"]
        self.tokens, self.ends = [], []
        for k, shard in enumerate(self.description["shards"]):
            shape = (shard["tokens"], self.width)
            dtype = np.dtype(DTYPES[self.precision])
            path = directory / f"tokens-{k}.bin"
            found, expected = path.stat().st_size, dtype.itemsize * shape[0] * shape[1]
            if found != expected:
                raise ValueError(f"{path} has {found} bytes, expected {expected}")
            # An empty file cannot be mapped.
            mapped = np.memmap(path, dtype, "r", shape=shape) if expected else np.empty(shape)
            self.tokens.append(mapped)
            ends = np.load(directory / f"ends-{k}.npy", allow_pickle=False)
            if len(ends) != shard["rows"] or (len(ends) and ends[-1] != shard["tokens"]):
                raise ValueError(f"ends-{k}.npy in {directory} does not fit its rows")
            self.ends.append(ends)
        self.first = np.cumsum([0, *(len(e) for e in self.ends)])  # first row of each shard

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.directory,)  # workers map the files, they do not copy them

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: int) -> np.ndarray | None:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a feature store of {len(self)} rows")
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        row = index - int(self.first[shard])
        ends = self.ends[shard]
        start = int(ends[row - 1]) if row else 0
        if ends[row] == start:
            return None
        return unpacked(self.tokens[shard][start : int(ends[row])], self.precision)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and deviation (D,) of the pooled features over the rows that have them."""
        count, total, square = 0, np.zeros(self.width), np.zeros(self.width)
        for row in self:
            if row is not None:
                pooled = row.mean(0, dtype=np.float64)
                count, total, square = count + 1, total + pooled, square + pooled**2
        mean = total / max(count, 1)
        deviation = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0))
        return mean.astype(np.float32), deviation.astype(np.float32)

    def mark_used(self) -> None:
        """Note the time, so that what is not used for long can be removed."""
        with suppress(OSError):  # somebody else's store
            os.utime(self.directory / "store.json")


class StoredViews(Sequence["np.ndarray | None"]):
    """One store per augmentation view; rows come from the view of the epoch.

    epoch: (), int64, which running loader workers see change
    """

    def __init__(self, views: Sequence[FeatureStore], epoch: torch.Tensor) -> None:
        self.views, self.epoch = list(views), epoch
        self.depth = self.views[0].depth

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, index: int) -> np.ndarray | None:  # type: ignore[override]
        return self.views[int(self.epoch) % len(self.views)][index]


def is_sound(directory: Path) -> bool:
    """Whether a store is complete and its files have the sizes that they were written with."""
    try:
        FeatureStore(directory)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return False
    return True


def describe(directory: Path) -> dict[str, Any]:
    """What `store.json` says.

    Raises `FileNotFoundError` where there is none that is complete, `ValueError` for a damaged one.
    """
    path = directory / "store.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no complete feature store")
    description = json.loads(path.read_text())
    if not isinstance(description, dict):
        raise ValueError(f"{path} describes no feature store")
    return description


def digest_of(description: Mapping[str, Any]) -> str:
    """Digest of a description, but for the digest that it holds itself."""
    rest = {name: value for name, value in description.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(rest).encode(), digest_size=16).hexdigest()


def packed(tokens: np.ndarray, precision: str) -> bytes:
    """Bytes of float32 numbers in a precision.  Raises `OverflowError` where fp16 ends."""
    if precision == "bf16":
        half = torch.from_numpy(np.ascontiguousarray(tokens)).to(torch.bfloat16)
        return half.view(torch.int16).numpy().tobytes()
    if precision == "fp16" and np.abs(tokens).max(initial=0) > np.finfo(np.float16).max:
        raise OverflowError(
            f"a feature is {np.abs(tokens).max():.4g}, too large for fp16: store fp32 or bf16"
        )
    return np.ascontiguousarray(tokens, dtype=DTYPES[precision]).tobytes()


def unpacked(tokens: np.ndarray, precision: str) -> np.ndarray:
    """Float32 numbers of what `packed` wrote; of fp32 the very same memory."""
    if precision == "bf16":
        return torch.from_numpy(np.array(tokens)).view(torch.bfloat16).float().numpy()
    return tokens.astype(np.float32, copy=False)


def write_shard(
    directory: Path, shard: int, rows: Iterable[Sequence[np.ndarray | None]], precision: str
) -> dict[str, Any]:
    """Write consecutive rows, in chunks of `(T_i, D)` float32 arrays or None, as one shard.

    -> what `finish_store` needs to know of it
    """
    directory.mkdir(parents=True, exist_ok=True)
    ends: list[int] = []
    length = 0
    digest = hashlib.blake2b(digest_size=16)
    with (directory / f"tokens-{shard}.bin").open("wb") as file:
        for chunk in rows:
            for tokens in chunk:
                if tokens is not None:
                    data = packed(tokens, precision)
                    digest.update(data)
                    file.write(data)
                    length += len(tokens)
                ends.append(length)
        sync(file)
    with BytesIO() as memory:
        np.save(memory, np.asarray(ends, dtype=np.int64))
        data = memory.getvalue()
    digest.update(data)
    with (directory / f"ends-{shard}.npy").open("wb") as file:
        file.write(data)
        sync(file)
    return {"rows": len(ends), "tokens": length, "digest": digest.hexdigest()}


def sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def finish_store(directory: Path, final: Path, description: Mapping[str, Any]) -> None:
    """Describe a directory of shards and move it to its place in one step.

    description: width, depth, precision, unreadable, shards, and whatever else is good to know
    """
    described = {"format": FORMAT, "created": time.time(), **description}
    described["digest"] = digest_of(described)
    with (directory / "store.json").open("w") as file:
        file.write(json.dumps(described))
        sync(file)
    if final.exists() and not is_sound(final):
        remove_store(final)
    try:
        directory.rename(final)
    except OSError:
        if not is_sound(final):
            raise
        shutil.rmtree(directory)  # another run finished the same store first
        return
    folder = os.open(final.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def remove_store(directory: Path) -> None:
    """Take a store away in one step, so that no run finds half of it, and then delete it."""
    aside = directory.with_name(f"{directory.name[:32]}.{uuid.uuid4().hex[:8]}.part")
    with suppress(FileNotFoundError):  # somebody else was faster
        directory.rename(aside)
        shutil.rmtree(aside)
