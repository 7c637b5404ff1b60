"""Gradient blending: weights by hand, and rows that are only looked at."""

from __future__ import annotations

import datasets
import pytest
import torch
from torch.nn import functional as F

from mmtransfer.data.mixing import Mixed
from mmtransfer.features import Held, RowContext
from mmtransfer.methods.gradient_blending import GradientBlending, blend
from mmtransfer.methods.mixup import MixUp
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, build_strategy

from .conftest import numbers


def held(rows, share=0.3, seed=0, epoch=0):
    numbered = [(i, dict(row)) for i, row in enumerate(rows)]
    context = RowContext(seed, epoch, ["a", "b"])
    GradientBlending(share).on_rows(numbered, context)
    return [i for i, row in numbered if isinstance(row["kind"], Held)], numbered


def test_weights_are_generalisation_over_squared_overfitting():
    before = torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.5, 2.0]])
    now = torch.tensor([[1.0, 1.0, 1.5], [1.5, 2.0, 1.6]])
    # G = 0.5, 0.5, 0.4;  O = 0.5 - 0, 1.0 - 0.5, 0.1 - 0
    ratio = torch.tensor([0.5 / 0.25, 0.5 / 0.25, 0.4 / 0.01])
    torch.testing.assert_close(blend(before, now), ratio / ratio.sum())
    some = blend(before, now, even=0.3)
    torch.testing.assert_close(some, 0.1 + 0.7 * ratio / ratio.sum())


def test_a_loss_that_does_not_generalise_has_no_weight():
    before, now = torch.tensor([[2.0, 2.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.1, 1.5]])
    assert blend(before, now).tolist() == [0, 1]
    assert blend(before, before).isnan().all()


def test_rows_are_held_out_by_number_and_seed_alone():
    rows = numbers(count=2000)
    chosen, numbered = held(rows)
    assert 0.26 < len(chosen) / 2000 < 0.34
    assert held(rows, epoch=3)[0] == chosen
    assert held(rows[:100])[0] == [i for i in chosen if i < 100]
    assert held(rows, seed=1)[0] != chosen
    for i in chosen:
        row = numbered[i][1]
        assert row["kind"] == Held(rows[i]["kind"])
        assert row["a"] is rows[i]["a"]


def test_no_weight_learns_the_label_of_a_row_that_is_held_out(fit):
    rows = numbers(missing=False)
    method = {"name": "gradient_blending", "share": 0.3, "every": 1000}
    chosen, _ = held(rows)
    wrong = [dict(row, kind="x") if i in chosen else row for i, row in enumerate(rows)]
    assert wrong != rows
    found, other = (fit(method, given, phase=Phase(3, 1e-2, 1e-2))[0] for given in (rows, wrong))
    assert found.losses == other.losses
    for name, value in found.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


class Spy(GradientBlending):
    """Measures by other means: on whole batches, in the order of the rows."""

    def __init__(self, rows, share, every):
        super().__init__(share, every, even=0.1)
        self.rows, self.measured, self.used = rows, [], []

    def on_loss(self, loss, model, batch, outputs):
        order = batch.index.argsort()
        kept = torch.ones(len(self.rows), dtype=torch.bool)
        kept[held(self.rows, self.share)[0]] = False
        total = torch.zeros(2, 3)
        for task, classes in (("kind", ["x", "y", "z"]), ("good", [False, True])):
            targets = torch.tensor([classes.index(row[task]) for row in self.rows])
            for k, o in enumerate([outputs.logits[task], *outputs.unimodal[task].unbind(1)]):
                losses = F.cross_entropy(o[order].detach(), targets, reduction="none")
                total[:, k] += torch.stack([losses[kept].mean(), losses[~kept].mean()])
        self.measured.append(total)
        loss = super().on_loss(loss, model, batch, outputs)
        self.used.append(self.weights)
        return loss


def test_the_weights_follow_from_the_losses_of_two_stretches(fit):
    rows = numbers(missing=False)
    spy = Spy(rows, 0.4, every=2)
    fit(spy, rows, phase=Phase(7, 1e-1, 1e-1, warmup=0.0), batch_size=24)
    first, *later = (torch.stack(spy.measured[i : i + 2]).mean(0) for i in (0, 2, 4))
    assert all(torch.equal(weights, torch.full((3,), 1 / 3)) for weights in spy.used[:4])
    for step, now in zip((4, 6), later, strict=True):
        torch.testing.assert_close(spy.used[step], blend(first, now, 0.1), atol=1e-3, rtol=1e-2)
        assert not torch.allclose(spy.used[step], spy.used[step - 1], atol=1e-2)


def test_pictures_of_held_out_rows_are_not_mixed_into_others(picture):
    rows = [(i, {"image": picture(i), "kind": "x"}) for i in range(40)]
    context = RowContext(0, 0, ["image"], {"image": "image"})
    GradientBlending(0.3).on_rows(rows, context)
    chosen = {i for i, row in rows if isinstance(row["kind"], Held)}
    MixUp(rate=0.9).on_rows(rows, context)
    mixed = [(i, row["image"]) for i, row in rows if isinstance(row["image"], Mixed)]
    assert len(mixed) > 10
    assert not chosen & {i for i, _ in mixed}
    assert not chosen & {image.partner for _, image in mixed}
    with pytest.raises(ValueError, match="list gradient_blending before"):
        GradientBlending(0.3).on_rows(rows, context)


def test_a_stream_has_no_rows_to_hold_out():
    rows = [{"a": [1.0, 2.0, 3.0], "kind": kind} for kind in "xyxy"]
    model = build_model({"a": "mlp?shape=[3]&widths=[6]"}, {"kind": "classification"}, rows)
    strategy = build_strategy("full", methods=["gradient_blending"])
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    options = TrainingOptions(steps_per_epoch=1, batch_size=4, progress=False)
    with pytest.raises(ValueError, match="rows with fixed numbers, not a stream"):
        Trainer(model, stream, None, strategy, options)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"in \(0, 1\), found 1"):
        GradientBlending(share=1)
    with pytest.raises(ValueError, match=r"in \[0, 1\], found 2"):
        GradientBlending(even=2)
    with pytest.raises(ValueError, match="at least 1 step"):
        GradientBlending(every=0)
