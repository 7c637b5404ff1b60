"""The cache of feature stores: what it holds, whether it is sound, and what may go."""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmtransfer.data.store import DTYPES, cache_directory, describe, digest_of, remove_store

NAME = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{8}\.part)?")
#: seconds without a change after which nobody is at work on a half-written store any more
ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """One directory of the cache.

    description: what its store.json says, None without one that is sound
    bytes: on disk
    used: seconds since 1970 of its last use; of a half-written store, of its last change
    """

    directory: Path
    description: dict[str, Any] | None
    bytes: int
    used: float

    @property
    def half_written(self) -> bool:
        return self.directory.suffix == ".part"

    @property
    def abandoned(self) -> bool:
        return self.half_written and time.time() - self.used > ABANDONED

    def summary(self) -> dict[str, Any]:
        """What a reader wants to know of it, ready for JSON."""
        about = self.description or {}
        return {
            "column": about.get("column"),
            "encoder": about.get("encoder class"),
            "what": self._what(about),
            "rows": sum(shard["rows"] for shard in about["shards"]) if about else None,
            "precision": about.get("precision"),
            "bytes": self.bytes,
            "used": self.used,
            "key": self.directory.name,
        }

    def _what(self, about: dict[str, Any]) -> str:
        if self.half_written:
            return "abandoned half-way" if self.abandoned else "being written"
        if not about:
            return "unreadable"
        what = f"activations below stage {about['depth']}" if about.get("depth") else "features"
        changed = about.get("augmentation")
        return f"{what}, view {changed[1] + 1}" if changed else what


def entries(cache: str | Path | None = None) -> list[Entry]:
    """All stores of a cache, complete or not, the last used first.

    Raises `FileNotFoundError` for a given directory that is none.
    """
    if cache is not None and not cache_directory(cache).is_dir():
        raise FileNotFoundError(f"no such cache directory: {cache}")
    root = cache_directory(cache) / "features"
    named = [path for path in root.iterdir() if NAME.fullmatch(path.name)] if root.is_dir() else []
    found = [_entry(path) for path in named if path.is_dir() and not path.is_symlink()]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.used)


def _entry(directory: Path) -> Entry | None:
    try:
        files = {path.name: path.stat() for path in directory.iterdir()}
        changed = [directory.stat().st_mtime, *(file.st_mtime for file in files.values())]
    except FileNotFoundError:  # removed, or moved to its place, meanwhile
        return None
    entry = Entry(directory, None, sum(f.st_size for f in files.values()), max(changed))
    if not entry.half_written and "store.json" in files:
        with suppress(FileNotFoundError, ValueError):
            used, description = files["store.json"].st_mtime, describe(directory)
            if description.get("digest") == digest_of(description):
                return replace(entry, description=description, used=used)
    return entry


def damage(entry: Entry) -> str | None:
    """What is wrong with a store, None for one that is sound or half-written; reads all of it."""
    if entry.half_written:
        return None
    if entry.description is None:
        return "store.json is missing, damaged or of an older version"
    size = np.dtype(DTYPES[entry.description["precision"]]).itemsize * entry.description["width"]
    for k, shard in enumerate(entry.description["shards"]):
        tokens, ends = entry.directory / f"tokens-{k}.bin", entry.directory / f"ends-{k}.npy"
        try:
            found, expected = tokens.stat().st_size, size * shard["tokens"]
            if found != expected:
                return f"{tokens.name} has {found} bytes, expected {expected}"
            with tokens.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            digest.update(ends.read_bytes())
        except OSError as error:
            return f"{Path(error.filename or tokens).name}: {error.strerror}"
        if digest.hexdigest() != shard["digest"]:
            return f"{tokens.name} or {ends.name} is not what was written"
    return None


def prune(
    cache: str | Path | None = None,
    days: float | None = None,
    gigabytes: float | None = None,
    damaged: bool = False,
    dry_run: bool = False,
) -> list[Entry]:
    """Remove what nobody needs; -> what was removed.

    Half-written stores that were abandoned always go, those that are being written never do.

    days: remove stores that were not used for so long
    gigabytes: keep at most so much (10^9 bytes), of what was used last
    damaged: read all and remove what `damage` finds
    dry_run: remove nothing
    Raises `ValueError` for a negative number.
    """
    for name, number in (("days", days), ("gigabytes", gigabytes)):
        if number is not None and not number >= 0:
            raise ValueError(f"{name} must not be negative, found {number}")
    kept, full, gone = 0, False, []
    for entry in entries(cache):
        going = entry.abandoned
        if not entry.half_written:
            going = full or (days is not None and time.time() - entry.used > days * 86400)
            going = going or (damaged and damage(entry) is not None)
            if not going and gigabytes is not None:
                going = full = kept + entry.bytes > gigabytes * 1e9
        if going:
            gone.append(entry)
        else:
            kept += entry.bytes
    for entry in [] if dry_run else gone:
        remove_store(entry.directory)
    return gone
