"""Reversed gradients, and a discriminator that learns."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Method
from mmtransfer.methods.dann import DANN, ramp, reverse
from mmtransfer.transfer.base import Phase

from .test_alignment import encoders, target


class Model:
    fusion = SimpleNamespace(width=4)


def prepared(progress: float, **options):
    torch.manual_seed(0)
    method = DANN(**options)
    method.build(Model)
    method.step, method.steps = round(100 * progress), 100
    return method


def sides():
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(3, 4, generator=generator, requires_grad=True)
    unlabelled = torch.randn(2, 4, generator=generator, requires_grad=True)
    other = Batch({}, {}, torch.tensor([5, ~0]), real=torch.tensor(1.0))
    batch = Batch({}, {}, torch.tensor([0, 1, ~0]), unlabelled=other, real=torch.tensor(2.0))
    return source, unlabelled, batch


def test_the_gradient_is_turned_round_and_the_value_is_not():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    found = reverse(x, 0.3)
    assert torch.equal(found, x)
    (found**2).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * 2 * x.detach())


def test_the_ramp_is_that_of_the_paper():
    assert ramp(0, 10) == 0
    assert ramp(0.5, 10) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert 0.9999 < ramp(1, 10) < 1


def test_discriminator_and_vectors_get_opposite_gradients():
    """Of the mean over both sides, each of which counts the same; fillers count for nothing."""
    source, unlabelled, batch = sides()
    method = prepared(0.5, weight=2.0)
    outputs = Outputs({}, fused=source, unlabelled=Outputs({}, fused=unlabelled))
    found = method.on_loss(torch.tensor(1.0), None, batch, outputs)
    judged = torch.cat([source[:2], unlabelled[:1]])
    losses = F.binary_cross_entropy_with_logits(
        method.module(judged).squeeze(1), torch.tensor([1.0, 1.0, 0.0]), reduction="none"
    )
    expected = 1 + (losses[:2].mean() + losses[2]) / 2
    assert found.item() == pytest.approx(expected.item())
    wanted = torch.autograd.grad(expected, [source, unlabelled, *method.module.parameters()])
    got = torch.autograd.grad(found, [source, unlabelled, *method.module.parameters()])
    factor = -2 * ramp(0.5, 10)
    for number, (mine, plain) in enumerate(zip(got, wanted, strict=True)):
        torch.testing.assert_close(mine, plain * (factor if number < 2 else 1))
    assert got[0][:2].abs().min() > 0
    assert not got[0][2].any()


def test_the_first_step_trains_the_discriminator_alone(fit):
    found = fit("dann", further=target())[1].seen
    plain = fit(None, further=target())[1].seen
    torch.testing.assert_close(encoders(found[0]), encoders(plain[0]), atol=1e-7, rtol=0)
    assert (encoders(found[1]) - encoders(plain[1])).abs().max() > 1e-5


def test_progress_is_the_share_of_all_steps_of_all_phases(fit):
    method, seen = DANN(), []

    class Watch(Method):
        def on_weights(self, model, step):
            seen.append(method.progress)

    fit(method, phase=Phase(2, 1e-3), extra=(Watch(),), further=target())  # 24 rows, 12 a step
    assert seen == [0.25, 0.5, 0.75, 1.0]
