"""Pseudo-labels: which rows get one, what they weigh, thresholds by class."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.self_training import SelfTraining, ease
from mmtransfer.tasks.classification import Classification

PROBABILITIES = torch.tensor([[0.95, 0.05], [0.4, 0.6], [0.08, 0.92], [0.99, 0.01]])


class Model:
    tasks: ClassVar = {"kind": Classification("xy", weight=3.0)}


def step(method: SelfTraining, probabilities=PROBABILITIES):
    index = torch.tensor([0, 1, 2, ~3])
    other = Batch({}, {}, index, real=torch.tensor(3.0))
    batch = Batch({}, {}, index, unlabelled=other, real=torch.tensor(3.0))
    logits = probabilities.log().requires_grad_()
    outputs = Outputs({}, unlabelled=Outputs({"kind": logits}))
    found = method.on_loss(torch.tensor(1.0), Model, batch, outputs)
    method.on_gradients(Model, lambda: None)
    return found, logits


def test_sure_rows_have_the_loss_of_their_label_over_all_rows():
    found, logits = step(SelfTraining(weight=2.0, threshold=0.9, ramp=0))
    sure = torch.tensor([0, 2])  # one is not sure, one a filler
    losses = F.cross_entropy(logits[sure], torch.tensor([0, 1]), reduction="sum")
    assert found.item() == pytest.approx(1 + 2 * 3 * float(losses.detach()) / 3)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.abs().sum(1).bool().tolist() == [True, False, True, False]


def test_the_weight_rises_over_a_share_of_the_run():
    method = SelfTraining(ramp=0.5)
    method.steps, values = 100, []
    for method.step in (0, 25, 50, 100):
        values.append(float(step(method)[0].detach()) - 1)
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2] / 2)
    assert values[3] == values[2]


def test_thresholds_by_class():
    """Of 10 rows in 10 six surely have the first label, three the second, none the third."""
    found = ease(torch.tensor([0.6, 0.3, 0.0]))
    assert found.tolist() == pytest.approx([1, 0.5 / 1.5, 0])
    assert ease(torch.tensor([0.1, 0.0])).tolist() == pytest.approx([(1 / 9) / (2 - 1 / 9), 0])


def test_a_class_that_is_seldom_sure_is_accepted_at_less():
    method = SelfTraining(threshold=0.9, ramp=0, balanced=True)
    step(method)
    assert method.shares["kind"].tolist() == pytest.approx([1 / 3, 1 / 3])
    often = torch.tensor([[0.95, 0.05], [0.97, 0.03], [0.99, 0.01], [0.5, 0.5]])
    for _ in range(400):
        step(method, often)
    assert method.shares["kind"].tolist() == pytest.approx([1, 0], abs=0.02)
    mixed = torch.tensor([[0.85, 0.15], [0.4, 0.6], [0.45, 0.55], [0.5, 0.5]])
    found, logits = step(method, mixed)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.abs().sum(1).bool().tolist() == [False, True, True, False]
    method.load_state_dict(method.state_dict())
    assert method.shares["kind"][0] > 0.95
