"""`mmtransfer cache`: look at the stored features of frozen encoders, check or remove them."""

from __future__ import annotations

import sys
import time
from json import dumps
from pathlib import Path
from typing import Any


def cache_list(cache: Path | None = None, json: bool = False) -> None:
    """List the feature stores, the last used first.

    Args:
        cache: directory, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        json: print JSON
    """
    from mmtransfer.data.cache import entries
    from mmtransfer.data.store import cache_directory

    found = [entry.summary() for entry in entries(cache)]
    total = sum(store["bytes"] for store in found)
    if json:
        print(dumps({"cache": str(cache_directory(cache)), "stores": found, "bytes": total}))
        return
    _print_stores(found)
    print(f"{len(found)} in {cache_directory(cache)}, {_size(total)}")


def cache_verify(cache: Path | None = None, json: bool = False) -> None:
    """Read all feature stores: exit code 1 if one is damaged.

    Args:
        cache: directory, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        json: print JSON
    """
    from mmtransfer.data.cache import damage, entries

    complete = [entry for entry in entries(cache) if not entry.half_written]
    found = {entry.directory.name: wrong for entry in complete if (wrong := damage(entry))}
    if json:
        print(dumps({"read": len(complete), "damaged": found}))
    else:
        for key, wrong in found.items():
            print(f"{key}: {wrong}")
        print(f"{len(complete)} read, {len(found)} damaged")
    if found:
        raise SystemExit(1)


def cache_prune(
    cache: Path | None = None,
    days: float | None = None,
    gigabytes: float | None = None,
    damaged: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove feature stores, and in any case those that were abandoned half-way.

    Args:
        cache: directory, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        days: remove what was not used for so many days
        gigabytes: keep at most so much, of what was used last
        damaged: read all and remove what is damaged
        dry_run: remove nothing, only say what would be
        json: print JSON
    """
    from mmtransfer.data.cache import prune

    gone = [entry.summary() for entry in prune(cache, days, gigabytes, damaged, dry_run)]
    total = sum(store["bytes"] for store in gone)
    if json:
        print(dumps({"removed": gone, "bytes": total, "dry_run": dry_run}))
        return
    _print_stores(gone)
    print(f"{len(gone)} {'would be ' if dry_run else ''}removed, {_size(total)}")


def _print_stores(stores: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("column", "encoder", "what"):
        table.add_column(heading)
    for heading in ("rows", "precision", "size", "last used", "key"):
        number = heading in ("rows", "size")
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for store in stores:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(store["used"]))
        cells = [store[name] for name in ("column", "encoder", "what", "rows", "precision")]
        shown = ["" if cell is None else str(cell) for cell in cells]
        table.add_row(*shown, _size(store["bytes"]), used, store["key"])
    if stores:
        Console(width=None if sys.stdout.isatty() else 200).print(table)


def _size(count: int) -> str:
    unit, size = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6) if count >= 1e6 else ("kB", 1e3)
    return f"{count / size:.1f} {unit}"
