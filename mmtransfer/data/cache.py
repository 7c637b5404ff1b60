"""The cache of feature stores: what it holds, whether it is sound, and what may go."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtransfer.data.store import DTYPES, cache_directory, describe

NAME = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{8}\.part)?")
#: seconds without a change after which nobody is at work on a half-written store any more
ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """One directory of the cache.

    description: of a complete store, else None
    bytes: on disk
    used: seconds since 1970 of its last use; of a half-written store, of its last change
    """

    directory: Path
    description: dict[str, Any] | None
    bytes: int
    used: float

    @property
    def abandoned(self) -> bool:
        return self.description is None and time.time() - self.used > ABANDONED


def entries(cache: str | Path | None = None) -> list[Entry]:
    """All stores of a cache, complete or not, the last used first."""
    root = cache_directory(cache) / "features"
    found = []
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.is_dir() and NAME.fullmatch(directory.name):
            files = [path.stat() for path in directory.iterdir()]
            try:
                description = describe(directory)
                used = (directory / "store.json").stat().st_mtime
            except (FileNotFoundError, ValueError):
                description = None
                used = max((f.st_mtime for f in files), default=directory.stat().st_mtime)
            size = sum(f.st_size for f in files)
            found.append(Entry(directory, description, size, used))
    return sorted(found, key=lambda entry: -entry.used)


def damage(entry: Entry) -> str | None:
    """What is wrong with a store, None for one that is sound; reads all of it."""
    if entry.description is None:
        return "abandoned half-way" if entry.abandoned else "being written"
    try:
        return next(_damages(entry.directory, entry.description), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _damages(directory: Path, description: dict[str, Any]) -> Iterator[str]:
    size = np.dtype(DTYPES[description["precision"]]).itemsize * description["width"]
    for k, shard in enumerate(description["shards"]):
        path = directory / f"tokens-{k}.bin"
        found = path.stat().st_size
        if found != size * shard["tokens"]:
            yield f"{path.name} has {found} bytes, expected {size * shard['tokens']}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        if digest.hexdigest() != shard["digest"]:
            yield f"{path.name} is not what was written"
        ends = np.load(directory / f"ends-{k}.npy", allow_pickle=False)
        last = int(ends[-1]) if len(ends) else 0
        if len(ends) != shard["rows"] or last != shard["tokens"] or (np.diff(ends) < 0).any():
            yield f"ends-{k}.npy does not fit its rows"


def prune(
    cache: str | Path | None = None,
    days: float | None = None,
    gigabytes: float | None = None,
    dry_run: bool = False,
) -> list[Entry]:
    """Remove what nobody needs; -> what was removed.

    Half-written stores that were abandoned always go.

    days: stores that were not used for so long
    gigabytes: keep at most so much (10^9 bytes), of what was used last
    dry_run: remove nothing
    """
    kept, gone = 0, []
    for entry in entries(cache):
        old = days is not None and time.time() - entry.used > days * 86400
        large = gigabytes is not None and kept + entry.bytes > gigabytes * 1e9
        if entry.abandoned or (entry.description is not None and (old or large)):
            gone.append(entry)
        else:
            kept += entry.bytes
    for entry in [] if dry_run else gone:
        shutil.rmtree(entry.directory)
    return gone
