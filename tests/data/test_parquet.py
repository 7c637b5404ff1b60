"""Rows read lazily from parquet files are those that datasets gives, whatever the row groups."""

from __future__ import annotations

import pickle
from itertools import pairwise

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtransfer.data import parquet
from mmtransfer.data.parquet import ParquetRows
from mmtransfer.data.rows import column, fingerprint_column, with_label_names

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "audio": datasets.Audio(),
        "text": datasets.Value("string"),
        "numbers": datasets.List(datasets.Value("float32")),
        "label": datasets.ClassLabel(names=["no", "yes"]),
    }
)


def make(rows: int) -> datasets.Dataset:
    """Every third value of a column is missing, at shifted places; sounds are undecoded anyway."""
    columns = {
        "image": [{"bytes": bytes([i % 256]) * 5, "path": f"{i}.png"} for i in range(rows)],
        "audio": [{"bytes": None, "path": f"{i}.wav"} for i in range(rows)],
        "text": [f"text {i}" for i in range(rows)],
        "numbers": [[i, i / 2] for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
    }
    for shift, values in enumerate(columns.values()):
        values[shift::7] = [None] * len(values[shift::7])
    plain = datasets.Features(
        FEATURES | {"image": datasets.Image(decode=False), "audio": datasets.Audio(decode=False)}
    )
    # Not from_dict, which encodes sounds and needs torchcodec for that.
    table = pa.Table.from_pydict(columns, schema=plain.arrow_schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def write(data: datasets.Dataset, path, group: int, start: int = 0, size: int | None = None):
    pq.write_table(data.data.table.slice(start, size), path, row_group_size=group)


@given(
    st.lists(st.integers(0, 23), min_size=1, max_size=3).filter(any),
    st.integers(1, 9),
    st.integers(0, 400),
)
@settings(deadline=None, max_examples=30)
def test_rows_are_those_of_datasets(tmp_path_factory, sizes, group, cache):
    """For any number of files, size of the row groups, and size of the cache."""
    folder, data = tmp_path_factory.mktemp("parquet"), make(sum(sizes))
    files, start = [], 0
    for number, size in enumerate(sizes):
        files.append(folder / f"{number}.parquet")
        write(data, files[-1], group, start, size)
        start += size
    rows, expected = ParquetRows(files, cache), data.to_list()
    assert len(rows) == len(expected)
    assert list(rows) == expected
    assert [rows[i] for i in range(len(rows))] == expected
    assert [rows[-i] for i in range(1, len(rows) + 1)] == expected[::-1]
    assert rows.column_names == data.column_names
    assert rows.features == data.features
    assert rows.blocks[0] == 0
    assert rows.blocks[-1] == len(rows)
    assert all(0 < end - first <= group for first, end in pairwise(rows.blocks))
    with pytest.raises(IndexError, match=f"row {len(rows)} of {len(rows)} rows"):
        rows[len(rows)]


def test_a_selection_reads_its_columns_only(tmp_path, monkeypatch):
    write(make(20), tmp_path / "a.parquet", 6)
    rows = ParquetRows([tmp_path / "a.parquet"])
    chosen = rows.select_columns(["label", "text"])
    asked = []
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, columns, **o: asked.append(columns) or plain(self, group, columns, **o),
    )
    assert chosen[7] == {"label": 1, "text": "text 7"}
    assert asked == [["label", "text"]]
    assert chosen.column_names == ["label", "text"]
    assert list(chosen) == [{"label": r["label"], "text": r["text"]} for r in make(20)]
    assert list(column(rows, "text")) == make(20)["text"][:]
    with pytest.raises(ValueError, match="no column 'txet'. Did you mean 'text'"):
        rows.select_columns(["txet"])


def test_the_cache_keeps_what_it_may_and_not_more(tmp_path, monkeypatch):
    table = pa.table({"image": [bytes(1000)] * 100, "n": range(100)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    rows = ParquetRows([tmp_path / "a.parquet"], cache=45_000)
    assert rows.resident == 4
    read = []
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: read.append(group) or plain(self, group, **options),
    )
    for i in (0, 15, 25, 35, 3, 18):  # four groups, over and over
        assert rows[i]["n"] == i
    assert read == [1, 2, 3]  # the first was read to see how large it is
    assert rows[49]["n"] == 49  # the group that has not been used for longest makes room
    assert (rows[5]["n"], rows[12]["n"]) == (5, 12)
    assert read == [1, 2, 3, 4]
    assert rows[22]["n"] == 22
    assert read == [1, 2, 3, 4, 2]
    assert rows.held == sum(t.nbytes for t in rows.kept.values()) <= 45_000
    for i in range(0, 100, 7):
        rows[i]
        assert rows.held <= 45_000
    tight = ParquetRows([tmp_path / "a.parquet"], cache=0)
    assert [row["n"] for row in map(tight.__getitem__, (1, 55, 99))] == [1, 55, 99]
    assert (len(tight.kept), tight.resident) == (1, 1)


def test_workers_get_no_open_file_and_no_cache(tmp_path):
    write(make(20), tmp_path / "a.parquet", 6)
    rows = with_label_names(ParquetRows([tmp_path / "a.parquet"]), "label")
    assert rows[3]["label"] == "yes"
    twin = pickle.loads(pickle.dumps(rows))
    assert not twin.kept
    assert list(twin) == list(rows)
    assert twin[9] == rows[9]


def test_labels_become_names_as_they_are_read(tmp_path):
    data = make(20)
    write(data, tmp_path / "a.parquet", 6)
    rows = ParquetRows([tmp_path / "a.parquet"])
    named, expected = with_label_names(rows, "label"), with_label_names(data, "label")
    assert [r["label"] for r in named] == expected["label"][:]
    assert [named[i]["label"] for i in range(20)] == expected["label"][:]
    assert named.features["label"] == datasets.Value("string")
    assert with_label_names(named, "label") is named
    assert rows[1]["label"] == 1
    assert fingerprint_column(named, "label") == fingerprint_column(expected, "label")


def test_categories_of_pandas_are_their_values(tmp_path):
    table = pa.table({"y": pa.array(["a", "b", None, "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = ParquetRows([tmp_path / "a.parquet"])
    assert [row["y"] for row in rows] == ["a", "b", None, "a"]
    assert with_label_names(rows, "y") is rows


def test_shards_may_differ_where_it_does_no_harm(tmp_path):
    """Another order of columns, a column that one shard has no value of, smaller numbers."""
    shards = [
        pa.table({"text": ["a"], "n": pa.array([1], pa.int32()), "x": pa.nulls(1)}),
        pa.table({"n": pa.array([2**40]), "x": ["late"], "text": ["b"]}),
        pa.table({"n": pa.array([0.5]), "x": pa.nulls(1), "text": pa.nulls(1)}),
    ]
    files = [tmp_path / f"{k}.parquet" for k in range(3)]
    for shard, file in zip(shards, files, strict=True):
        pq.write_table(shard, file)
    rows = ParquetRows(files)
    expected = [
        {"text": "a", "n": 1.0, "x": None},
        {"text": "b", "n": 2.0**40, "x": "late"},
        {"text": None, "n": 0.5, "x": None},
    ]
    assert list(rows) == expected
    assert [rows[i] for i in range(3)] == expected
    assert {type(row["n"]) for row in rows} == {float}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"text": ["b"], "lable": [1]}, r"1\.parquet has no column 'label', unlike 0\.parquet"),
        ({"text": ["b"], "label": [1], "extra": [2]}, r"0\.parquet has no column 'extra', unlike"),
        ({"text": [7], "label": [1]}, r"1\.parquet, column 'text' holds int64, expected string"),
    ],
)
def test_shards_that_do_not_fit_are_named(tmp_path, other, message):
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), files[0])
    pq.write_table(pa.table(other), files[1])
    with pytest.raises(ValueError, match=message):
        ParquetRows(files)


def test_shards_whose_numbers_mean_other_labels_are_refused(tmp_path):
    files = []
    for names in (["no", "yes"], ["yes", "no"]):
        features = datasets.Features({"y": datasets.ClassLabel(names=names)})
        files.append(tmp_path / f"{names[0]}.parquet")
        datasets.Dataset.from_dict({"y": [0, 1]}, features=features).to_parquet(files[-1])
    with pytest.raises(
        ValueError, match=r"yes\.parquet, column 'y' has the labels \['yes', 'no'\]"
    ):
        ParquetRows(files)


def test_a_row_group_that_breaks_later_names_its_file(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 1000}), file, use_dictionary=False)
    rows = ParquetRows([file])
    content = bytearray(file.read_bytes())
    content[4:40] = b"\xff" * 36
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet is no readable parquet file"):
        rows[0]
    with pytest.raises(FileNotFoundError):
        ParquetRows([tmp_path / "nowhere.parquet"])
    with pytest.raises(ValueError, match="no parquet file is given"):
        ParquetRows([])


def test_all_rows_in_order_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """Also of a file that is one large row group."""
    table = pa.table({"image": [bytes(1000)] * 500})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, seen = ParquetRows([tmp_path / "a.parquet"]), []
    plain = ParquetRows._cast
    monkeypatch.setattr(
        ParquetRows, "_cast", lambda self, t: seen.append(t.num_rows) or plain(self, t)
    )
    assert sum(1 for _ in rows) == 500
    assert max(seen) <= parquet.STREAMED
    assert not rows.kept
