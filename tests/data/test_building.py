"""A set that is built is complete or not there, and never mixed with another."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtransfer.data import building
from mmtransfer.data.building import write_set
from mmtransfer.data.checksum import checksum
from mmtransfer.data.rows import load_rows

SCHEMA = pa.schema({"text": pa.string(), "digit": pa.int64()})
ROWS = [{"text": None if i % 5 == 0 else f"row {i}", "digit": i} for i in range(23)]
SPLITS = {"train": ROWS, "val": ROWS[:3], "test": []}


def test_what_is_read_is_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "GROUP", 10)
    about = write_set("numbers", SPLITS, SCHEMA, tmp_path / "new" / "set", {"seed": 1})
    read = load_rows(tmp_path / "new" / "set")
    assert {split: list(rows) for split, rows in read.items()} == {
        "train": ROWS,
        "validation": ROWS[:3],
        "test": [],
    }
    assert about == json.loads((tmp_path / "new/set/set.json").read_text())
    assert about["set"] == "numbers"
    assert about["options"] == {"seed": 1}
    assert about["rows"] == {"train": 23, "validation": 3, "test": 0}
    assert about["checksum"] == checksum(read)
    footer = pq.ParquetFile(tmp_path / "new/set/train.parquet").metadata
    assert [footer.row_group(k).num_rows for k in range(footer.num_row_groups)] == [10, 10, 3]


def test_a_set_is_replaced_only_on_demand(tmp_path: Path) -> None:
    first = write_set("a", SPLITS, SCHEMA, tmp_path, {})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds a data set .*--overwrite"):
        write_set("b", SPLITS | {"test": ROWS}, SCHEMA, tmp_path, {})
    assert checksum(load_rows(tmp_path)) == first["checksum"]
    second = write_set("b", SPLITS | {"test": ROWS}, SCHEMA, tmp_path, {}, overwrite=True)
    assert checksum(load_rows(tmp_path)) == second["checksum"] != first["checksum"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_files_of_another_set_are_never_mixed_in(tmp_path: Path) -> None:
    """`load_rows` would read train-0.parquet together with train.parquet."""
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "train-0.parquet")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="other data .train-0.parquet"):
            write_set("a", SPLITS, SCHEMA, tmp_path, {}, overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        write_set("a", SPLITS, SCHEMA, tmp_path / "file", {})


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    first = write_set("a", SPLITS, SCHEMA, tmp_path, {})
    damaged = SPLITS | {"test": [*ROWS, {"text": "x", "digit": "no number"}]}
    with pytest.raises((pa.ArrowException, TypeError)):
        write_set("b", damaged, SCHEMA, tmp_path, {}, overwrite=True)
    assert checksum(load_rows(tmp_path)) == first["checksum"]
    files = {"train.parquet", "val.parquet", "test.parquet", "set.json"}
    assert {file.name for file in tmp_path.iterdir()} == files
