"""The feature store: features computed once, memory-mapped, keyed by data and encoder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

FORMAT = 1


def cache_directory(given: str | Path | None = None) -> Path:
    """Where stores live: as given, else `$MMTRANSFER_CACHE`, else `~/.cache/mmtransfer`."""
    return Path(given or os.environ.get("MMTRANSFER_CACHE") or "~/.cache/mmtransfer").expanduser()


def store_key(data: str, encoder: str, pooled: bool, precision: str) -> str:
    """Name of the store of one column under one encoder."""
    text = json.dumps([FORMAT, data, encoder, pooled, precision])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class FeatureStore(Sequence["np.ndarray | None"]):
    """Features of the rows of one column: `store[i]` is `(T_i, D)`, or None where it is missing.

    A directory of shards: `tokens-k.npy` (tokens of consecutive rows, one after the other, no
    padding) and `ends-k.npy` (where each row ends), described by `store.json`, written last.
    Raises `FileNotFoundError` for a directory that is no complete store.
    """

    def __init__(self, directory: Path) -> None:
        description = directory / "store.json"
        if not description.is_file():
            raise FileNotFoundError(f"{directory} holds no complete feature store")
        self.directory = directory
        meta = json.loads(description.read_text())
        self.width: int = meta["width"]
        self.unreadable: list[int] = meta["unreadable"]
        self.tokens, ends = [], []
        for k in range(meta["shards"]):
            tokens = directory / f"tokens-{k}.npy"
            self.tokens.append(np.load(tokens, mmap_mode="r", allow_pickle=False))
            ends.append(np.load(directory / f"ends-{k}.npy", allow_pickle=False))
        self.ends = ends
        self.first = np.cumsum([0, *(len(e) for e in ends)])  # first row of each shard

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
        return self.tokens[shard][start : int(ends[row])] if ends[row] > start else None

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


def write_shard(
    directory: Path, shard: int, width: int, rows: Iterable[Sequence[np.ndarray | None]]
) -> None:
    """Write consecutive rows, in chunks of `(T_i, D)` float32 arrays or None, as one shard."""
    directory.mkdir(parents=True, exist_ok=True)
    ends: list[int] = []
    length = 0
    raw = directory / f"tokens-{shard}.raw"
    with raw.open("wb") as file:
        for chunk in rows:
            for tokens in chunk:
                if tokens is not None:
                    file.write(np.ascontiguousarray(tokens, dtype=np.float32).tobytes())
                    length += len(tokens)
                ends.append(length)
    # npy with its header in front: the size is only known now.
    with (directory / f"tokens-{shard}.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (length, width)}
        np.lib.format.write_array_header_2_0(file, header)
        with raw.open("rb") as source:
            shutil.copyfileobj(source, file)
    raw.unlink()
    np.save(directory / f"ends-{shard}.npy", np.asarray(ends, dtype=np.int64))


def finish_store(
    directory: Path, final: Path, width: int, shards: int, unreadable: list[int]
) -> None:
    """Describe a directory of shards and move it to its place in one step."""
    meta = {"width": width, "shards": shards, "unreadable": sorted(unreadable)}
    (directory / "store.json").write_text(json.dumps(meta))
    try:
        directory.rename(final)
    except OSError:
        if not (final / "store.json").is_file():
            raise
        shutil.rmtree(directory)  # another run finished the same store first
