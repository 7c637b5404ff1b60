"""Steps that go wrong: stopped at the right step, or left out on any device, and nothing stays."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.base import Method
from mmtransfer.methods.uncertainty import Uncertainty
from mmtransfer.training import state
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import make_accelerator
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy


class Spoil(Method):
    """Makes one gradient infinite while the loss of the step is as good as any.

    own: another method; its parameters are remembered too, and with `theirs` it is their gradient
    """

    def __init__(self, at: int, own: Method | None = None, theirs: bool = False) -> None:
        self.at, self.own, self.theirs, self.rows, self.weights = at, own, theirs, [], []

    def _watched(self, model):
        own = [] if self.own is None else self.own.module.parameters()
        return [model.heads["product"].weight, *own]

    def begin(self, model, look):
        spoiled = self._watched(model)[self.theirs]
        spoiled.register_hook(lambda g: g * float("inf") if len(self.rows) == self.at else g)

    def on_loss(self, loss, model, batch, outputs):
        self.rows.append(batch.index.tolist())
        return loss

    def on_weights(self, model, step):
        self.weights.append([p.detach().clone() for p in self._watched(model)])


def fit(rows, *methods, **changed):
    options = TrainingOptions(batch_size=10, progress=False, **changed)
    model = build_model(
        {"text": "tiny-bert?width=8&layers=1"}, {"product": "classification"}, rows, "concat", 8
    )
    trainer = Trainer(model, rows, None, Strategy([Phase(2, 1e-2)], list(methods)), options)
    trainer.fit()
    return trainer


def test_an_infinite_gradient_is_blamed_on_its_own_rows(products):
    spoil = Spoil(3)
    with pytest.raises(FloatingPointError) as caught:
        fit(products["train"], spoil)
    rows = ", ".join(map(str, sorted(spoil.rows[2])))
    assert "the gradients of step 3 are not finite" in str(caught.value)
    assert f"in training rows {rows}:" in str(caught.value)


@pytest.mark.parametrize("theirs", [False, True])
def test_an_infinite_gradient_of_what_a_method_trains_is_blamed_too(products, theirs):
    own = Uncertainty()
    with pytest.raises(FloatingPointError, match="the gradients of step 3 are not finite"):
        fit(products["train"], own, Spoil(3, own, theirs))


def set_fused(monkeypatch, fused):
    plain = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *given, **named: plain(*given, **{**named, "fused": fused})
    )


def check_left_out(trainer, spoil):
    """The third step, and no other, changed nothing: of the model, and of what a method trains."""
    assert trainer.skipped_steps == 1
    for before, same, after in zip(*spoil.weights[1:4], strict=True):
        assert torch.equal(before, same)
        assert torch.isfinite(after).all()
        assert not torch.equal(same, after)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_step_is_left_out_whether_the_optimiser_is_fused_or_not(
    products, monkeypatch, fused, clip, theirs
):
    set_fused(monkeypatch, fused)
    own = Uncertainty()
    spoil = Spoil(3, own, theirs)
    trainer = fit(products["train"], own, spoil, on_nan="skip", clip=clip)
    check_left_out(trainer, spoil)


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("changed", [{"on_nan": "skip"}, {"clip": 0.0}, {}], ids=str)
def test_a_scaler_hears_of_what_methods_train(products, monkeypatch, changed, theirs):
    """As in fp16, which needs a GPU, the scale is halved and the step left out, for both."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def scaled(options, output):
        accelerator = make_accelerator(options, output)
        accelerator.scaler = scaler
        accelerator.unscale_gradients = lambda optimizer: scaler.unscale_(optimizer.optimizer)
        return accelerator

    monkeypatch.setattr(state, "make_accelerator", scaled)
    set_fused(monkeypatch, False)
    own = Uncertainty()
    spoil = Spoil(3, own, theirs)
    trainer = fit(products["train"], own, spoil, **changed)
    assert scaler.get_scale() == 4
    if "on_nan" not in changed:
        trainer.skipped_steps += 1  # it looks for its scale: no fault of the rows
    check_left_out(trainer, spoil)


class Exhaust(Method):
    """Runs out of memory once, in the second micro-batch of the first step."""

    def __init__(self, own: Method, wanted: bool) -> None:
        self.own, self.wanted, self.calls, self.seen = own, wanted, 0, []

    def on_loss(self, loss, model, batch, outputs):
        self.calls += 1
        if self.wanted and self.calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    def on_gradients(self, model, again):
        self.seen += [p.grad.clone() for p in self.own.module.parameters()]


def test_nothing_is_left_of_a_step_that_ran_out_of_memory(products):
    seen = []
    for wanted, parts in ((True, 2), (False, 4)):
        own = Uncertainty()
        exhaust = Exhaust(own, wanted)
        trainer = fit(products["train"], own, exhaust, on_oom="halve", accumulation=parts)
        assert trainer.accumulation == 4
        seen.append(exhaust.seen)
    torch.testing.assert_close(seen[0], seen[1])
