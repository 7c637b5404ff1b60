"""Data sets that are built: parquet files that `load_rows` reads, and a note of what they are."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from mmtransfer.data.checksum import checksum
from mmtransfer.data.rows import Rows, load_rows

GROUP = 256  # rows per row group: a reader decodes one at a time
ABOUT = "set.json"


def write_set(
    name: str,
    splits: Mapping[str, Rows],
    schema: pa.Schema,
    directory: str | Path,
    options: Mapping[str, Any],
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write `<split>.parquet` for each split and `set.json`; -> what `set.json` says.

    Rows are taken one after the other and written in groups, so few are in memory at a time. The
    files come to their places when all are complete.

    Args:
        name: of the set, for `set.json`
        options: what the set was made with, for `set.json`
        overwrite: replace a set that lies there
        progress: bars on a terminal

    Raises:
        FileExistsError: where a set lies in the directory, see `check_free`
    """
    directory = check_free(directory, list(splits), overwrite)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=directory) as part:
        for split, rows in splits.items():
            _write(rows, schema, Path(part) / f"{split}.parquet", f"{name} {split}", progress)
        written = load_rows(part)
        about = {
            "set": name,
            "options": dict(options),
            "rows": {split: len(rows) for split, rows in written.items()},
            "checksum": checksum(written),
        }
        (Path(part) / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        (directory / ABOUT).unlink(missing_ok=True)  # it must not stand beside files of two sets
        for file in [*(f"{split}.parquet" for split in splits), ABOUT]:
            os.replace(Path(part) / file, directory / file)
    return about


def check_free(directory: str | Path, splits: list[str], overwrite: bool = False) -> Path:
    """The directory, if a set may be written there.

    Raises `FileExistsError` where a set lies and `overwrite` is not given, or files that would be
    read together with the new ones.
    """
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file, expected a directory to write to")
    ours = {ABOUT, *(f"{split}.parquet" for split in splits)}
    found = sorted(file.name for file in [*directory.glob("*.parquet"), *directory.glob(ABOUT)])
    if foreign := [file for file in found if file not in ours]:
        raise FileExistsError(f"{directory} holds other data ({foreign[0]}): name a new directory")
    if found and not overwrite:
        raise FileExistsError(f"{directory} holds a data set ({found[0]}): --overwrite replaces it")
    return directory


def _write(rows: Rows, schema: pa.Schema, file: Path, title: str, progress: bool) -> None:
    console = Console(stderr=True)
    shown = track(
        range(len(rows)),
        title,
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    )
    with pq.ParquetWriter(file, schema, compression="none") as writer:
        group = []
        for number in shown:
            group.append(rows[number])
            if len(group) == GROUP or number == len(rows) - 1:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
