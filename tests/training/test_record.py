"""Provenance: what run.json holds, and what it never holds."""

from __future__ import annotations

import json
import subprocess
import sys

import accelerate
import pytest
import torch
from accelerate import PartialState

import mmtransfer
from mmtransfer.data.parquet import ParquetRows
from mmtransfer.data.rows import fingerprint_column
from mmtransfer.data.stream import Stream
from mmtransfer.training import record, surroundings
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.processes import join_processes
from mmtransfer.training.record import fingerprints, read_record, write_record
from mmtransfer.training.run import build_model, run
from mmtransfer.training.surroundings import git_state
from mmtransfer.transfer.base import build_strategy


def git(directory, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def test_a_run_leaves_its_record(products, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    monkeypatch.setenv("FAVOURITE_FRUIT", "a very ripe pear")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(sys, "argv", ["train.py", "--token", "hf_abcdefghijkl", "--seed", "5"])
    model = build_model(
        {"text": "tiny-bert?width=8"}, {"product": "classification"}, products["train"]
    )
    options = TrainingOptions(batch_size=20, accumulation=2, seed=5, progress=False)
    run(model, products, build_strategy("linear_probe", epochs=1), options, tmp_path / "out")
    text = (tmp_path / "out" / "run.json").read_text()
    assert "hf_abcdefghijkl" not in text
    assert "ripe pear" not in text
    record = read_record(tmp_path / "out")
    assert record["arguments"] == ["--token", "***", "--seed", "5"]
    assert record["settings"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert record["seed"] == 5
    assert record["batch"] == {
        "rows_per_step": 20,
        "rows_per_process": 10,
        "accumulation": 2,
        "processes": 1,
    }
    assert [machine["processes"] for machine in record["machines"]] == [1]
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["versions"]["accelerate"] == accelerate.__version__
    assert record["versions"]["mmtransfer"] == mmtransfer.__version__
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["cpu"]
    assert set(record["data"]) == {"train", "validation", "test"}
    assert record["data"]["test"] == {
        "rows": 21,
        "text": fingerprint_column(products["test"], "text"),
        "product": fingerprint_column(products["test"], "product"),
    }


def test_a_changed_value_changes_the_fingerprint_of_its_column_alone():
    rows = [{"text": "pear", "price": 1.0}, {"text": "milk", "price": None}]
    before = fingerprints({"train": rows}, ["text", "price"])["train"]
    rows[1] = {"text": "milk", "price": 2.0}
    after = fingerprints({"train": rows}, ["text", "price"])["train"]
    assert before["text"] == after["text"]
    assert before["price"] != after["price"]


def test_large_files_are_known_by_their_footers_and_streams_by_their_length(tmp_path, monkeypatch):
    import datasets

    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "kind": ["x", "y", "x"]})
    data.to_parquet(tmp_path / "a.parquet")
    data.map(lambda row: {"kind": row["kind"] * 2}).to_parquet(tmp_path / "b.parquet")
    monkeypatch.setattr(record, "LARGE", 10)
    found = [
        fingerprints({"train": ParquetRows([tmp_path / f"{name}.parquet"])}, ["text"])["train"]
        for name in "aab"
    ]
    assert found[0] == found[1]
    assert found[0]["footers"] != found[2]["footers"]
    assert found[0]["rows"] == 3
    stream = Stream(data.to_iterable_dataset(), length=3)
    columns = ["text", "kind"]
    assert fingerprints({"train": stream}, ["text"]) == {"train": {"rows": 3, "columns": columns}}


def test_uncommitted_changes_are_recorded(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) is None  # nothing is committed yet
    (tmp_path / "recipe.py").write_text("lr = 1\n")
    (tmp_path / ".gitignore").write_text("own.py\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    (tmp_path / "notes.txt").write_text("no code")
    (tmp_path / "own.py").write_text("ignored")
    clean = git_state(tmp_path)
    assert (clean["dirty"], clean["diff"], clean["diff_sha256"]) == (False, "", None)
    assert len(clean["commit"]) == 40

    (tmp_path / "recipe.py").write_text("lr = 2\n")
    (tmp_path / "folder").mkdir()
    changed = git_state(tmp_path / "folder")
    assert changed["dirty"]
    assert changed["commit"] == clean["commit"]
    assert "-lr = 1\n+lr = 2" in changed["diff"]

    (tmp_path / "folder" / "encoder.py").write_text("width = 3\n")
    (tmp_path / ".#recipe.py").symlink_to("me@host.123")  # as editors mark what they have open
    more = git_state(tmp_path)
    assert "new file folder/encoder.py\nwidth = 3" in more["diff"]
    assert more["diff_sha256"] != changed["diff_sha256"]
    monkeypatch.setattr(surroundings, "DIFF_CHARACTERS", 10)
    bounded = git_state(tmp_path)
    assert (len(bounded["diff"]), bounded["diff_complete"]) == (10, False)
    assert bounded["diff_sha256"] == more["diff_sha256"]


def test_no_record_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run.json: expected the output directory"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is no readable JSON"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"seed": 1}))
    assert read_record(tmp_path) == {"seed": 1}


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    join_processes()
    if PartialState().num_processes > 1:
        pytest.skip("started by a launcher")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started.*found 1.*ACCELERATE_USE_CPU"):
        join_processes()


def test_a_resumed_run_keeps_its_earlier_records(tmp_path):
    data, options = {"train": {"rows": 1}}, TrainingOptions()
    write_record(tmp_path, data, options)
    first = read_record(tmp_path)
    for count in (1, 2):
        write_record(tmp_path, data, options, resume=True)
        record = read_record(tmp_path)
        assert record["before"][0] == first
        assert len(record["before"]) == count
    write_record(tmp_path, data, options)
    assert "before" not in read_record(tmp_path)
