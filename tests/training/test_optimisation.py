"""Steps that go wrong: stopped at the right step, or left out on any device, and nothing stays."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.base import Method
from mmtransfer.methods.uncertainty import Uncertainty
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy


class Spoil(Method):
    """Makes one gradient infinite while the loss of the step is as good as any."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.rows, self.weights = at, 0, [], []

    def on_loss(self, loss, model, batch, outputs):
        self.rows.append(batch.index.tolist())
        return loss

    def on_gradients(self, model, again):
        self.calls += 1
        if self.calls == self.at:
            model.heads["product"].weight.grad.view(-1)[0] = float("inf")

    def on_weights(self, model, step):
        self.weights.append(model.heads["product"].weight.detach().clone())


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


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_is_left_out_whether_the_optimiser_is_fused_or_not(
    products, monkeypatch, fused, clip
):
    plain = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *given, **named: plain(*given, **{**named, "fused": fused})
    )
    spoil = Spoil(3)
    trainer = fit(products["train"], spoil, on_nan="skip", clip=clip)
    assert trainer.skipped_steps == 1
    assert torch.equal(spoil.weights[1], spoil.weights[2])
    assert all(torch.isfinite(weights).all() for weights in spoil.weights)
    assert not torch.equal(spoil.weights[2], spoil.weights[3])


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
