"""SAM: its gradient is the one at the top of the hill nearby, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmtransfer.methods.base import build_method
from mmtransfer.methods.sam import SAM, statistics_kept
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, build_strategy

from .conftest import Look, numbers
from .looking import small_model


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_is_that_of_the_worst_point_nearby(adaptive):
    """Of half a quadratic form, whose gradient is A w."""
    model = nn.Linear(2, 1, bias=False)
    form = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    at = torch.tensor([[1.0, -0.5]])
    model.weight.data = at.clone()
    seen = []

    def again():
        seen.append(model.weight.detach().clone())
        model.weight.grad = model.weight.detach() @ form

    model.weight.grad = at @ form
    SAM(0.1, adaptive).on_gradients(model, again)
    g = at @ form
    up = at.square() * g / (at * g).norm() if adaptive else g / g.norm()
    torch.testing.assert_close(seen[0], at + 0.1 * up)
    torch.testing.assert_close(model.weight.grad, (at + 0.1 * up) @ form)
    assert torch.equal(model.weight.data, at)


def test_running_statistics_take_no_notice_of_the_second_pass():
    norm = nn.BatchNorm1d(2)
    before = norm.running_mean.clone()
    with statistics_kept(norm):
        norm(torch.randn(4, 2) + 5)
    assert torch.equal(norm.running_mean, before)
    norm(torch.randn(4, 2) + 5)
    assert not torch.equal(norm.running_mean, before)


def test_without_a_radius_it_would_be_the_plain_gradient(fit):
    near = fit({"name": "sam", "rho": 1e-7})[1].seen[0]
    plain = fit()[1].seen[0]
    for name, gradient in plain.items():
        torch.testing.assert_close(near[name], gradient, atol=1e-5, rtol=1e-4)


def test_what_would_be_lost_is_an_error_at_the_start(fit):
    after = build_method("sam")
    with pytest.raises(ValueError, match=r"stands first .*: list SAM before L2SP"):
        fit("l2_sp", extra=(after,))
    with pytest.raises(ValueError, match="rho of sam must be greater than 0, found 0"):
        SAM(0)
    fit("sam", extra=(build_method("l2_sp"),), phase=Phase(1, 1e-2, 1e-2))


def first_gradients(strategy) -> tuple[dict, dict]:
    """Weights before the first step, and the gradients with which it is taken."""
    look, model = Look(), small_model()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    options = TrainingOptions(batch_size=12, progress=False, track=[])
    Trainer(model, numbers(), None, build_strategy(strategy, [look]), options).fit()
    return start, look.seen[0]


@pytest.mark.parametrize("preset", ["l2_sp", "wise_ft"])
def test_it_comes_before_the_method_of_a_preset(preset):
    strategy = build_strategy(preset, ["mixup", "sam"], epochs=1)
    names = [type(method).__name__ for method in strategy.methods]
    assert names == ["SAM", {"l2_sp": "L2SP", "wise_ft": "WiSEFT"}[preset], "MixUp"]
    first_gradients(strategy)


def test_the_pull_of_l2_sp_is_part_of_the_last_gradient():
    """At the start that is beta times the weights which are new."""
    of = {b: build_strategy("l2_sp", ["sam"], epochs=1, beta=b) for b in (0.0, 3.0)}
    (start, alone), (_, pulled) = (first_gradients(strategy) for strategy in of.values())
    for name in ("fusion.join.weight", "heads.kind.weight"):
        torch.testing.assert_close(pulled[name], alone[name] + 3 * start[name])
    name = "encoders.a.layers.0.0.weight"
    torch.testing.assert_close(pulled[name], alone[name])
