"""Where rows come from, and the errors before any work begins."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmtransfer.data.rows import (
    check_rows,
    fingerprint_column,
    load_rows,
    read_parquet,
    with_label_names,
)
from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.tasks.classification import Classification


@pytest.fixture(scope="module")
def encoders():
    return {"image": build_encoder("tiny-vit"), "text": build_encoder("tiny-bert")}


def rows(picture, n=3):
    return [{"image": picture(i), "text": f"t{i}", "product": "ab"[i % 2]} for i in range(n)]


def test_parquet_splits_are_found_by_name(tmp_path, picture):
    for name in ("train", "val", "test-0", "test-1"):
        pq.write_table(pa.Table.from_pylist(rows(picture)), tmp_path / f"{name}.parquet")
    splits = load_rows(tmp_path)
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 3,
        "validation": 3,
        "test": 6,
    }
    assert splits["train"][0]["image"] == picture(0)


def test_real_data_stays_undecoded_and_has_label_names(shared):
    data = load_rows(shared / "data/retail")["validation"]
    assert isinstance(data[0]["image"]["bytes"], bytes)
    named = with_label_names(data, "category")
    assert named[0]["category"] == data.features["category"].names[data[0]["category"]]


def test_an_image_folder_is_read(tmp_path, picture):
    for label in ("apple", "pear"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "train" / label / f"{i}.png").write_bytes(picture(i))
    data = load_rows(tmp_path)["train"]
    assert sorted(row["label"] for row in with_label_names(data, "label")) == [
        "apple",
        "apple",
        "pear",
        "pear",
    ]
    encoder = build_encoder("tiny-vit")
    assert encoder.collate([data[0]["image"]])["pixel_values"].shape == (1, 3, 32, 32)


def test_a_missing_directory_and_a_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data directory"):
        load_rows(tmp_path / "nowhere")
    (tmp_path / "train.parquet").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"train\.parquet is no readable parquet file"):
        load_rows(tmp_path)


def test_check_rows_names_what_is_wrong(encoders, picture):
    tasks = {"product": Classification()}
    good = rows(picture)

    def fails(data, message, training=True):
        with pytest.raises(ValueError, match=message):
            check_rows(data, encoders, {"product": Classification(["a", "b"])}, "train", training)

    check_rows(good, encoders, tasks, "train", training=True)
    assert tasks["product"].classes == ["a", "b"]
    fails([], "the train data has no rows")
    renamed = [{"imgae": r["image"], "text": r["text"], "product": "a"} for r in good]
    fails(renamed, "no column 'image'. Did you mean 'imgae'")
    fails([r | {"image": 3} for r in good], "column 'image' has the wrong type: .*found int")
    fails([r | {"text": 3.5} for r in good], "column 'text' has the wrong type: .*found float")
    fails([r | {"product": "c"} for r in good], "column 'product': label 'c' is none of the 2")
    fails([r | {"text": None} for r in good], "'text' is missing in all 3 train rows")
    empty = [r | {"text": None} for r in good]
    check_rows(empty, encoders, tasks, "test")  # not an error outside of training


def test_the_fingerprint_is_of_the_content(tmp_path, picture):
    data = rows(picture)
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "a.parquet")
    stored = read_parquet([tmp_path / "a.parquet"])
    assert fingerprint_column(stored, "image") == fingerprint_column(data, "image")
    changed = [*data[:2], data[2] | {"image": picture(9)}]
    assert fingerprint_column(changed, "image") != fingerprint_column(data, "image")
    assert fingerprint_column(changed, "text") == fingerprint_column(data, "text")
    missing = [*data[:2], data[2] | {"text": None}]
    assert fingerprint_column(missing, "text") != fingerprint_column(data, "text")


def test_class_labels_become_names():
    features = datasets.Features({"y": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"y": [1, 0, -1]}, features=features)
    assert [row["y"] for row in with_label_names(data, "y")] == ["yes", "no", None]


def test_any_text_has_a_fingerprint():
    for text in ("x" * 300, "null \0 inside", "many words " * 100):
        assert fingerprint_column([{"text": text}], "text")


def test_values_that_print_alike_differ():
    """Long tensors and waveforms are abbreviated when printed."""
    long = [np.zeros(20_000, np.float32) for _ in range(2)]
    long[1][10_000] = 1
    kinds = [
        [Waveform(samples, 16000) for samples in long],
        [torch.from_numpy(samples) for samples in long],
        [long[0], long[0].astype(np.float64)],
        [["a", "b"], ["ab"]],
    ]
    for values in kinds:
        first, second = (fingerprint_column([{"v": value}], "v") for value in values)
        assert first != second


def test_bytes_beside_a_path_are_the_whole_value_and_beside_other_entries_are_not():
    def found(value):
        return fingerprint_column([{"x": value}], "x")

    assert found({"bytes": b"1", "path": "a.png"}) == found({"bytes": b"1", "path": None})
    assert found({"bytes": b"1"}) == found(b"1")
    assert found({"bytes": 5, "packets": 1}) != found({"bytes": 5, "packets": 9})
    assert found({"bytes": b"1", "label": 1}) != found({"bytes": b"1", "label": 2})
    assert found({"bytes": 5, "path": "a"}) != found({"bytes": 5, "path": "b"})


def test_a_fingerprint_tells_values_of_other_types_apart():
    values = [None, "None", 1, "1", 1.0, b"1", ["1"], [1], {"a": 1}, True, np.int64(1)]
    found = {fingerprint_column([{"x": value}], "x") for value in values}
    assert len(found) == len(values)
