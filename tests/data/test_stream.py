"""Streams: labels and classes, the checks of their first rows, and where they come from."""

from __future__ import annotations

from itertools import islice

import datasets
import pytest

from mmtransfer.data.rows import (
    check_rows,
    class_names,
    column,
    columns_of,
    load_rows,
    with_label_names,
)
from mmtransfer.data.stream import Stream, is_stream
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
