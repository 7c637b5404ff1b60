"""Compiled encoders: the same training, the same names, the same files."""

from __future__ import annotations

import shutil

import pytest
import torch

from mmtransfer import Phase, Strategy, Trainer, TrainingOptions, TransferModel
from mmtransfer.methods.base import Method
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import compile_encoders
from mmtransfer.transfer.base import build_strategy

HERE = any(shutil.which(name) for name in ("g++", "c++", "clang++"))
compiler = pytest.mark.skipif(not HERE, reason="torch.compile on a CPU needs a C++ compiler")


class StopAtError(Exception):
    pass


class StopAt(Method):
    step = -1  # no option: a checkpoint is of one strategy

    def on_weights(self, model, step):
        if step == self.step:
            raise StopAtError


def trainer(products, output=None, compiled=True):
    """One phase of frozen encoders, then one in which the image encoder trains."""
    encoders = {"image": "tiny-vit?width=16&layers=1", "text": "tiny-bert?width=16&layers=1"}
    rows = [dict(row) for row in products["train"][:24]]
    rows[2]["image"] = None  # another number of pictures in one of the batches
    model = build_model(encoders, {"product": "classification"}, rows, width=16)
    phases = [Phase(1), Phase(2, lr=1e-2, encoder_lr={"image": 1e-3})]
    options = TrainingOptions(
        batch_size=8, compile=compiled, checkpoint_steps=1, progress=False, track=[]
    )
    return Trainer(model, rows, None, Strategy(phases, [StopAt()]), options, output)


@compiler
@pytest.mark.slow
def test_a_compiled_run_is_the_run_and_can_be_taken_up(products, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = trainer(products, compiled=False), trainer(products, tmp_path / "whole")
    plain.fit()
    assert not torch._dynamo.utils.counters["stats"]
    compiled.fit()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    assert all(e._compiled_call_impl is None for e in compiled.model.encoders.values())

    stopped, resumed = (trainer(products, tmp_path / "stopped") for _ in range(2))
    stopped.strategy.methods[0].step = 5
    with pytest.raises(StopAtError):
        stopped.fit()
    resumed.fit(resume=True)
    assert resumed.losses == pytest.approx(compiled.losses, rel=1e-5)
    for name, tensor in compiled.model.state_dict().items():
        assert torch.allclose(resumed.model.state_dict()[name], tensor, atol=1e-5), name

    compiled.save(tmp_path / "model")
    twin = TransferModel.from_pretrained(tmp_path / "model")
    rows = products["train"][:4]
    assert [a["product"]["label"] for a in twin.predict(rows)] == [
        a["product"]["label"] for a in compiled.model.predict(rows)
    ]


@compiler
@pytest.mark.slow
def test_what_trains_above_stored_activations_is_compiled_too(products, tmp_path):
    top = Strategy([Phase(2, lr=1e-2, encoder_lr=1e-3, top_stages=1)])
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        encoders = {"image": "tiny-vit?width=16&layers=1"}
        rows = products["train"][:16]
        model = build_model(encoders, {"product": "classification"}, rows, width=16)
        options = TrainingOptions(
            batch_size=8, compile=compiled, cache=str(tmp_path), progress=False
        )
        fitted = Trainer(model, rows, None, top, options)
        fitted.fit()
        losses.append(fitted.losses)
        assert bool(torch._dynamo.utils.counters["stats"]["calls_captured"]) == compiled
        assert "above" not in vars(model.encoders["image"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@compiler
@pytest.mark.slow
def test_a_method_may_go_backwards_through_compiled_encoders_by_itself(products):
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        rows = products["train"][:16]
        encoders = {"text": "tiny-bert?width=8&layers=1"}
        model = build_model(encoders, {"product": "classification"}, rows, width=8)
        strategy = build_strategy("full", methods=["mmpareto"], epochs=1)
        options = TrainingOptions(batch_size=8, compile=compiled, progress=False)
        fitted = Trainer(model, rows, None, strategy, options)
        fitted.fit()
        losses.append(fitted.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_machine_without_a_compiler_is_told_so(products, monkeypatch):
    model = trainer(products, compiled=False).model
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, found none of"):
        compile_encoders(model)
