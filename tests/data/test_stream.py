"""Streams: labels and classes, the checks of their first rows, and where they come from."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, chain, islice, pairwise

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtransfer.data.rows import (
    check_rows,
    class_names,
    column,
    columns_of,
    load_rows,
    with_label_names,
)
from mmtransfer.data.stream import Stream, is_stream, nearly_even
from mmtransfer.data.stream_batches import steps_of
from mmtransfer.encoders.base import build_encoder
from mmtransfer.tasks.base import Task
from mmtransfer.tasks.classification import Classification


def make(rows: int, shards: int = 4) -> datasets.IterableDataset:
    features = datasets.Features(
        {"n": datasets.Value("int64"), "y": datasets.ClassLabel(names=["even", "odd"])}
    )
    columns = {"n": list(range(rows)), "y": [i % 2 for i in range(rows)]}
    return datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset(shards)


def test_labels_become_names_and_classes():
    raw = make(10)
    assert is_stream(raw)
    assert not is_stream([{}])
    assert class_names(raw, "y") == ["even", "odd"]
    assert Stream(raw).classes("y") == [0, 1]
    named = with_label_names(raw, "y")
    assert list(column(named, "y"))[:3] == ["even", "odd", "even"]
    assert list(column(raw, "y"))[:3] == [0, 1, 0]
    assert named.classes("y") == ["even", "odd"]
    assert named.select_columns(["y"]).classes("y") == ["even", "odd"]
    assert named.select_columns(["n"]).classes("y") is None
    assert with_label_names(named, "y") is named
    assert columns_of(raw) == columns_of(named) == ["n", "y"]
    assert {row["y"] for row in named.part(0, 2, 0, 0, 5)} == {"even", "odd"}


def test_a_task_learns_its_classes_from_the_kind_of_the_column_or_its_options():
    named = with_label_names(make(10), "y")
    task = Classification()
    named.fit(task, "y")
    assert task.classes == ["even", "odd"]
    numbers = Classification()
    Stream(make(10)).fit(numbers, "y")
    assert numbers.classes == [0, 1]
    with pytest.raises(ValueError, match="name them in the task, as .*'classes'"):
        named.fit(Classification(), "n")
    given = Classification(classes=range(10))
    named.fit(given, "n")
    with pytest.raises(ValueError, match="label 5 is none of the 5 classes"):
        named.fit(Classification(classes=range(5)), "n")
    with pytest.raises(ValueError, match="balanced class weights are not known yet"):
        named.fit(Classification(class_weights="balanced"), "y")

    class Seen(Task):
        def fit(self, values):
            self.seen = values

    named.fit(seen := Seen(), "n")
    assert seen.seen == list(range(10))


def test_the_first_rows_are_checked():
    encoders = {"text": build_encoder("tiny-bert")}

    def stream(**columns):
        return datasets.Dataset.from_dict(columns).to_iterable_dataset()

    task = {"y": Classification(["a", "b"])}
    check_rows(stream(text=["x", None], y=["a", None]), encoders, task, "train", training=True)
    check_rows(stream(text=[None], y=["a"]), encoders, task, "train", training=True)  # as yet
    for columns, message in (
        ({"txt": ["x"], "y": ["a"]}, "the train data has no column 'text'. Did you mean 'txt'"),
        ({"text": [3], "y": ["a"]}, "column 'text' has the wrong type: .*found int"),
        ({"text": ["x"], "y": ["c"]}, "column 'y': label 'c' is none of the 2 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            check_rows(stream(**columns), encoders, task, "train", training=True)
    with pytest.raises(ValueError, match="the train data has no rows"):
        check_rows(stream(text=["x"], y=["a"]).take(0), encoders, task, "train")
    with pytest.raises(ValueError, match=r"must be a datasets\.IterableDataset, found generator"):
        check_rows((row for row in [{}]), encoders, task, "train")


def test_a_directory_can_be_streamed(tmp_path, picture):
    features = datasets.Features(
        {"image": datasets.Image(), "y": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(9)], "y": [0, 1, 1] * 3}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "train.parquet", batch_size=2)
    data.select(range(4)).to_parquet(tmp_path / "val.parquet")
    found = load_rows(tmp_path, streaming=True)
    train = with_label_names(found["train"], "y")
    assert set(found) == {"train", "validation"}
    assert (train.length, steps_of(train, 4, None), steps_of(train, 4, 7)) == (9, 3, 7)
    assert train.data.num_shards > 1  # one per row group: there is something to shuffle
    assert [row["y"] for row in train] == ["no", "yes", "yes"] * 3
    assert [row["image"]["bytes"] for row in train] == [picture(i) for i in range(9)]  # undecoded
    single = load_rows(tmp_path / "val.parquet", streaming=True)
    assert sum(1 for _ in single["train"]) == 4


def test_json_lines_of_unknown_kind_are_streamed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "y": 1}\n{"text": "b", "y": 0}\n')
    files = {"train": str(tmp_path / "a.jsonl")}
    stream = Stream(datasets.load_dataset("json", data_files=files, streaming=True)["train"])
    assert stream.column_names == ["text", "y"]
    assert [row["y"] for row in stream.select_columns(["y"])] == [1, 0]
    assert stream.classes("y") is None
    assert len(list(islice(stream.part(0, 1, 0, 1, 4), 5))) == 2


def test_a_hub_says_how_many_rows_a_split_has():
    raw = make(10)
    info = datasets.DatasetInfo(
        features=raw.features, splits={"train": {"name": "train", "num_examples": 10}}
    )
    known = datasets.IterableDataset(raw._ex_iterable, info=info, split=datasets.Split.TRAIN)
    assert Stream(raw).length is None
    for stream in (Stream(known), with_label_names(known, "y"), Stream(known.shuffle(seed=0))):
        assert stream.length == 10


def write(folder, name: str, *tables: pa.Table, group: int = 1000):
    """Shards of a split, as `name-0.parquet` and so on."""
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{name}-{number}.parquet", row_group_size=group)


VALUES = {
    "text": st.none() | st.text("ab", max_size=2),
    "picture": st.none() | st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=2)}),
    "y": st.none() | st.integers(0, 3),
    "words": st.none() | st.lists(st.none() | st.sampled_from("xy"), max_size=2),
}


@given(
    st.lists(
        st.tuples(
            st.lists(st.fixed_dictionaries(VALUES), max_size=7),
            st.sets(st.sampled_from(list(VALUES))),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=40)
def test_streamed_shards_are_those_read_by_number(tmp_path_factory, shards, group, parts):
    """Whatever is missing in a shard, or all of it; and the parts hold every row once."""
    folder, tables = tmp_path_factory.mktemp("shards"), []
    for rows, missing in shards:
        values = [{name: None if name in missing else row[name] for name in row} for row in rows]
        columns = {name: [row[name] for row in values] for name in VALUES}
        tables.append(pa.table(columns))  # a column of None alone has the type null
    write(folder, "train", *tables, group=group)
    known = load_rows(folder)["train"]
    stream = load_rows(folder, streaming=True)["train"]
    expected = list(known)
    assert stream.features == known.features
    assert list(stream) == expected
    assert stream.length == len(expected)
    assert stream.data.num_shards == len(stream.sizes)
    dealt = chain(*(stream.part(number, parts, 0, 1, 1000) for number in range(parts)))
    assert Counter(map(str, dealt)) == Counter(map(str, expected))


def test_a_split_may_have_columns_that_others_lack(tmp_path):
    write(tmp_path, "train", pa.table({"n": [1, 2], "text": ["a", None]}))
    write(tmp_path, "val", pa.table({"extra": [0.5], "n": [3], "text": ["b"]}))
    write(tmp_path, "test", pa.table({"n": pa.array([None], pa.null())}))
    streams, known = load_rows(tmp_path, streaming=True), load_rows(tmp_path)
    assert {split: list(rows) for split, rows in streams.items()} == {
        split: list(rows) for split, rows in known.items()
    }
    assert streams["validation"].column_names == ["extra", "n", "text"]


def test_no_rows_at_all_are_said_to_be_none(tmp_path):
    empty = pa.table({"text": pa.array([], pa.string()), "y": pa.array([], pa.string())})
    write(tmp_path, "train", empty, empty)
    with pq.ParquetWriter(tmp_path / "val.parquet", empty.schema):
        pass  # no row group either
    for split, rows in load_rows(tmp_path, streaming=True).items():
        assert list(rows) == []
        with pytest.raises(ValueError, match=f"the {split} data has no rows"):
            check_rows(rows, {}, {"y": Classification(["a"])}, split)


def test_an_empty_row_group_is_no_matter(tmp_path):
    table = pa.table({"n": list(range(5))})
    with pq.ParquetWriter(tmp_path / "train.parquet", table.schema) as writer:
        for start, rows in ((0, 0), (0, 3), (3, 0), (3, 2)):
            writer.write_table(table.slice(start, rows))
    stream = load_rows(tmp_path, streaming=True)["train"]
    assert [row["n"] for row in stream] == list(range(5))
    for parts in (1, 2, 4):
        found = [[r["n"] for r in stream.part(k, parts, 0, 0, 1000)] for k in range(parts)]
        assert sorted(chain(*found)) == list(range(5))
        assert all(found)


def test_a_directory_with_a_pattern_in_its_name_can_be_streamed(tmp_path):
    folder = tmp_path / "run[1]*?"
    folder.mkdir()
    write(folder, "train", pa.table({"n": [1, 2]}))
    assert [row["n"] for row in load_rows(folder, streaming=True)["train"]] == [1, 2]


@pytest.mark.parametrize("sizes", [[40, 2], [30, 3, 3, 3, 3], [5, 0, 5], [100] + [1] * 23])
@pytest.mark.parametrize("parts", [2, 3])
def test_uneven_shards_are_dealt_row_by_row(tmp_path, sizes, parts):
    """Else a small part would come again and again while others had not come once."""
    edges = list(accumulate(sizes, initial=0))
    tables = [pa.table({"n": list(range(a, b))}) for a, b in pairwise(edges)]
    write(tmp_path, "train", *tables)
    stream = load_rows(tmp_path, streaming=True)["train"].select_columns(["n"])
    found = [[row["n"] for row in stream.part(k, parts, 0, 0, 1000)] for k in range(parts)]
    assert sorted(chain(*found)) == list(range(sum(sizes)))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 5))
@settings(deadline=None)
def test_whole_shards_only_where_parts_come_out_even(sizes, parts):
    even = nearly_even(sizes, parts)
    assert even == nearly_even([7 * size for size in sizes], parts)
    if even and len(sizes) % parts == 0:  # then the emptiest part that can be drawn has rows
        assert sum(sorted(sizes)[: len(sizes) // parts])
    assert nearly_even([size or 1 for size in sizes], 1)
    assert nearly_even([9] * len(sizes), parts)


def test_large_data_is_read_by_whole_shards():
    """Files of ten full row groups and a rest: nobody reads what is another's."""
    sizes = [*[1000] * 10, 300] * 16
    assert nearly_even(sizes, 8)
    assert not nearly_even([*sizes, 50_000], 8)
