"""The encoder of a saved model is what it was, under a new head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmtransfer.encoders.base import build_encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

ENCODERS = {"a": "mlp?shape=[3]&widths=[6]", "b": "mlp?shape=[2]&widths=[5]"}


def rows(*tasks):
    rng = np.random.default_rng(0)
    return [
        {"a": rng.normal(k % 2, 1, 3), "b": rng.normal(k % 3, 1, 2)}
        | dict.fromkeys(tasks, "xyz"[k % 3])
        for k in range(12)
    ]


@pytest.fixture
def model():
    return build_model(ENCODERS, {"old": "classification"}, rows("old"), "concat", 8, seed=3)


def test_weights_and_values_are_those_of_the_saved_encoder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    found = build_encoder(f"saved:{tmp_path / 'model'}?column=b")
    assert found.pretrained
    values = [row["b"] for row in rows()]
    expected, found = (
        encoder.eval()(**encoder.collate(values)).tokens for encoder in (model.encoders["b"], found)
    )
    assert torch.equal(found, expected)


def test_it_gets_a_new_head_and_can_be_extended(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    spec = {"a": f"extended:saved:{tmp_path / 'model'}?column=a", "b": ENCODERS["b"]}
    target = build_model(spec, {"new": "classification"}, rows("new"), "concat", 8)
    assert set(target.heads) == {"new"}
    inner = target.encoders["a"].inner.state_dict()
    assert all(torch.equal(inner[n], t) for n, t in model.encoders["a"].state_dict().items())


def test_adapters_are_merged(model, tmp_path):
    strategy = build_strategy("lora", epochs=1, merge=False, encoder_lr=0.1)
    options = TrainingOptions(progress=False, track=[])
    trainer = Trainer(model, rows("old"), None, strategy, options)
    trainer.fit()
    trainer.close()
    model.save_pretrained(tmp_path / "model")
    found = build_encoder(f"saved:{tmp_path / 'model'}?column=a")
    assert not any("lora" in name for name, _ in found.named_parameters())
    inputs = found.collate([row["a"] for row in rows()])
    expected = model.eval().encoders["a"](**inputs).tokens
    torch.testing.assert_close(found.eval()(**inputs).tokens, expected)


def test_a_column_must_be_told_where_there_are_several(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is not told. Valid: a, b"):
        build_encoder(f"saved:{tmp_path / 'model'}")
    with pytest.raises(ValueError, match="'photo' is not there. Valid: a, b"):
        build_encoder(f"saved:{tmp_path / 'model'}?column=photo")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_encoder(f"saved:{tmp_path}/nowhere?column=a")
