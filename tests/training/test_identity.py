"""A checkpoint is taken up by the same run alone: data, preprocessing, model, options."""

from __future__ import annotations

import datasets
import pytest
import torch

import mmtransfer.training.record as record
from mmtransfer.data.stream import Stream
from mmtransfer.encoders.base import build_encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

TASKS = {"product": "classification"}
TINY = {"image": "tiny-vit?width=8&layers=1", "text": "tiny-bert?width=8&layers=1"}


def fit(output, rows, validation=None, encoders=TINY, resume=False, epochs=1, **changed):
    options = TrainingOptions(**{"batch_size": 20, "progress": False, "track": [], **changed})
    model = build_model(encoders, TASKS, rows, "concat", 8)
    strategy = build_strategy("full", epochs=epochs)
    trainer = Trainer(model, rows, validation, strategy, options, output)
    try:
        trainer.fit(resume)
    finally:
        trainer.close()


def edited(rows, name, value):
    """The same rows, but for one value."""
    return [{**row, name: value} if i == 7 else row for i, row in enumerate(rows)]


def test_another_value_in_any_column_of_training_or_validation_is_another_run(products, tmp_path):
    train, validation = products["train"], products["validation"]
    fit(tmp_path, train, validation)
    fit(tmp_path, [dict(row) for row in train], validation, resume=True)  # equal, not identical
    for name, value in (("text", "other"), ("image", train[8]["image"]), ("product", None)):
        with pytest.raises(ValueError, match=rf"of another run \(train {name}: was"):
            fit(tmp_path, edited(train, name, value), validation, resume=True)
        with pytest.raises(ValueError, match=rf"of another run \(validation {name}: was"):
            fit(tmp_path, train, edited(validation, name, value), resume=True)
    with pytest.raises(ValueError, match="validation rows: was 19, is 18"):
        fit(tmp_path, train, validation[:-1], resume=True)
    with pytest.raises(ValueError, match="validation rows: was 19, is None"):
        fit(tmp_path, train, None, resume=True)


def test_another_preprocessing_with_the_same_weights_is_another_run(products, tmp_path):
    fit(tmp_path, products["train"])
    torch.manual_seed(0)  # as build_model does: the same weights
    image, text = map(build_encoder, TINY.values())
    image.processor.image_mean = [0.4, 0.5, 0.6]
    with pytest.raises(ValueError, match=r"of another run \(encoder 'image': was"):
        fit(tmp_path, products["train"], encoders={"image": image, "text": text}, resume=True)


def test_a_stream_of_another_length_or_other_columns_is_another_run(products, tmp_path):
    def stream(rows, **more):
        texts = [{"text": row["text"], "product": row["product"], **more} for row in rows]
        data = datasets.Dataset.from_list(texts).class_encode_column("product")
        return Stream(data.to_iterable_dataset(), len(rows))

    rows, encoders = products["train"][6:], {"text": TINY["text"]}
    fit(tmp_path, stream(rows), encoders=encoders)
    fit(tmp_path, stream(rows), encoders=encoders, resume=True)
    with pytest.raises(ValueError, match="train rows: was 34, is 33"):
        fit(tmp_path, stream(rows[1:]), encoders=encoders, resume=True)
    with pytest.raises(ValueError, match="train columns: was"):
        fit(tmp_path, stream(rows, price=1.0), encoders=encoders, resume=True)


def test_the_data_is_read_for_its_digest_once_whatever_the_checkpoints(
    products, tmp_path, monkeypatch
):
    read = []
    plain = record.fingerprint_column
    monkeypatch.setattr(
        record, "fingerprint_column", lambda rows, name: read.append(name) or plain(rows, name)
    )
    fit(tmp_path, products["train"], epochs=2, checkpoint_steps=1)
    assert sorted(read) == ["image", "product", "text"]
