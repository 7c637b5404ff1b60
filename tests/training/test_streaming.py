"""The trainer on streams: from the first row to the saved model."""

from __future__ import annotations

import multiprocessing

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtransfer.data.rows import load_rows
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.recipe import train_on
from mmtransfer.training.run import build_model, run
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TINY = {"image": "tiny-vit", "text": "tiny-bert"}


def options(**changed) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": 8, "progress": False, **changed})


@pytest.fixture
def directory(products, tmp_path):
    """The products as parquet files, their labels as class numbers."""
    names = sorted({row["category"] for row in products["test"]})
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "text": datasets.Value("string"),
            "category": datasets.ClassLabel(names=names),
        }
    )
    (tmp_path / "data").mkdir()
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = [row for row in products[split] if row["category"] in names]
        columns = {
            "image": [row["image"] and {"bytes": row["image"], "path": None} for row in rows],
            "text": [row["text"] for row in rows],
            "category": [row["category"] for row in rows],
        }
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(tmp_path / "data" / f"{file}.parquet", batch_size=6)
    return tmp_path / "data"


def test_a_stream_is_trained_on_and_evaluated_from_one_command(directory, tmp_path):
    """With a frozen phase first: without a feature store its encoders run in every step."""
    strategy = build_strategy("lp_ft", probe_epochs=1, epochs=2)
    found = {}
    for streaming in (True, False):
        metrics = train_on(
            directory,
            TINY,
            {"category": "classification"},
            {"width": 16},
            strategy,
            options(streaming=streaming, steps_per_epoch=6 if streaming else None),
            tmp_path / f"out-{streaming}",
            single=False,
        )
        found[streaming] = metrics
    streamed = found[True]
    assert streamed["steps"] == 18
    assert streamed["timing"]["encoded_rows"] == 0
    rows = {split: streamed[split]["category"]["rows"] for split in ("validation", "test")}
    assert rows == {s: found[False][s]["category"]["rows"] for s in ("validation", "test")}
    model = TransferModel.from_pretrained(tmp_path / "out-True" / "model")
    twin = TransferModel.from_pretrained(tmp_path / "out-False" / "model")
    assert model.tasks["category"].classes == twin.tasks["category"].classes


def test_evaluation_of_a_stream_is_that_of_its_rows(directory):
    whole = load_rows(directory)
    model = build_model(TINY, {"category": "classification"}, whole["train"], "gated", 16)
    strategy = Strategy([Phase(1, encoder_lr=1e-3)])
    for workers in (0, 2):
        chosen = options(evaluation_batch_size=4, workers=workers)
        trainer = Trainer(model, whole["train"], None, strategy, chosen)
        streams = load_rows(directory, streaming=True)
        assert trainer.evaluate(streams["test"]) == trainer.evaluate(whole["test"])


def test_killed_workers_are_replaced_in_a_streamed_evaluation(directory, monkeypatch):
    whole = load_rows(directory)
    model = build_model(TINY, {"category": "classification"}, whole["train"], "gated", 16)
    chosen = options(evaluation_batch_size=1, workers=2)
    trainer = Trainer(model, whole["train"], None, Strategy([Phase(1)]), chosen)
    stream = load_rows(directory, streaming=True)["test"]
    expected, calls, plain = trainer.evaluate(whole["test"]), 0, model.forward

    def forward(*batch):
        nonlocal calls
        calls += 1
        if calls == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
        return plain(*batch)

    lines: list[str] = []
    monkeypatch.setattr(trainer.progress, "line", lines.append)
    monkeypatch.setattr(model, "forward", forward)
    assert trainer.evaluate(stream) == expected
    assert len(lines) == 1
    assert lines[0].startswith("replaced killed loader workers")


def test_steps_come_from_the_length_of_the_stream(directory, products):
    rows = load_rows(directory, streaming=True)
    model = build_model(TINY, {"category": "classification"}, rows["train"], "gated", 16)
    seen = []

    class Spy(Method):
        def on_rows(self, rows, context):
            seen.extend(row["text"] for _, row in rows)

    count = len(load_rows(directory)["train"])
    strategy = Strategy([Phase(2, encoder_lr=1e-3)], [Spy()])
    trainer = Trainer(model, rows["train"], None, strategy, options())
    trainer.fit()
    assert len(trainer.losses) == 2 * -(-count // 8)
    texts = [row["text"] or "" for row in load_rows(directory)["train"]]
    for epoch in (seen[:count], seen[len(seen) // 2 :][:count]):
        assert sorted(text or "" for text in epoch) == sorted(texts)
    assert seen[:count] != seen[len(seen) // 2 :][:count]


def test_same_seed_same_losses(directory):
    losses = []
    for seed in (0, 0, 1):
        rows = load_rows(directory, streaming=True)
        model = build_model(TINY, {"category": "classification"}, rows["train"], "gated", 16)
        strategy = Strategy([Phase(2, encoder_lr=1e-3)])
        chosen = options(seed=seed, workers=2, augment=True)
        trainer = Trainer(model, rows["train"], None, strategy, chosen)
        trainer.fit()
        losses.append(trainer.losses)
    assert losses[0] == losses[1] != losses[2]


def test_what_a_stream_cannot_do_is_said_before_training(directory, tmp_path):
    streams = load_rows(directory, streaming=True)
    model = build_model(TINY, {"category": "classification"}, streams["train"], "gated", 16)
    strategy = Strategy([Phase(1)])
    with pytest.raises(ValueError, match="a stream cannot be read in order 'length'"):
        run(model, streams, strategy, options(order="length"), tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nor is an earlier run replaced
    unknown = datasets.load_dataset(
        "parquet", data_files=str(directory / "train.parquet"), streaming=True
    )["train"]
    with pytest.raises(ValueError, match="does not say how many rows it has: set steps_per_epoch"):
        Trainer(model, unknown, None, strategy, options())
    trainer = Trainer(model, unknown, None, strategy, options(steps_per_epoch=2))
    trainer.fit()
    assert len(trainer.losses) == 2


def test_classes_of_text_labels_are_given(tmp_path):
    table = pa.table({"text": ["a", "b", "c"], "y": ["x", "y", "x"]})
    pq.write_table(table, tmp_path / "train.parquet")
    train = load_rows(tmp_path, streaming=True)["train"]
    text = {"text": TINY["text"]}
    with pytest.raises(ValueError, match="name them in the task"):
        build_model(text, {"y": "classification"}, train, "gated", 16)
    task = {"name": "classification", "classes": ["x", "y"], "class_weights": {"y": 2.0}}
    model = build_model(text, {"y": task}, train, "gated", 16)
    trainer = Trainer(model, train, None, Strategy([Phase(1)]), options(batch_size=3))
    trainer.fit()
    assert len(trainer.losses) == 1
