"""Strided depthwise convolutions: the function and its gradients stay those of nn.Conv2d."""

import copy

import pytest
import torch
from torch import nn

from mmtransfer.training.convolutions import StridedDepthwise, quicken_convolutions


def network(padding=1, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 16, 3, stride=2, padding=padding, groups=8, bias=bias),
        nn.Conv2d(16, 16, 3, groups=16),
    )


def gradients(model, x, autocast):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(x)
    output.float().square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(("padding", "bias"), [(1, True), (0, False), ((2, 1), True)])
def test_gradients_are_those_of_the_plain_layer(padding, bias):
    plain, x = network(padding, bias), torch.randn(2, 3, 9, 9)
    quick = copy.deepcopy(plain)
    quicken_convolutions(quick)
    exact = gradients(copy.deepcopy(plain), x, autocast=False)
    assert all(torch.equal(a, b) for a, b in zip(gradients(quick, x, False), exact, strict=True))
    quick.zero_grad()
    found, usual = gradients(quick, x, True), gradients(plain, x, True)
    assert torch.equal(found[0], usual[0])
    assert found[0].dtype == torch.bfloat16
    for ours, theirs, reference in zip(found[1:], usual[1:], exact[1:], strict=True):
        assert ours.dtype == theirs.dtype
        error, at_best = (ours - reference).norm(), (theirs - reference).norm()
        assert error <= 1.5 * at_best + 1e-6


def test_only_strided_depthwise_layers_change_and_keep_their_names():
    model = network()
    names = list(model.state_dict())
    quicken_convolutions(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, StridedDepthwise, nn.Conv2d]
    assert list(model.state_dict()) == names


def test_a_frozen_weight_gets_no_gradient_and_its_input_does():
    model, x = network(), torch.randn(2, 3, 9, 9)
    quicken_convolutions(model)
    model[1].requires_grad_(False)
    found = gradients(model, x, True)
    assert found[1].abs().sum() > 0
    assert model[1].weight.grad is None


def test_the_gradient_can_be_differentiated():
    """Methods that look at gradients take the gradient of their size."""
    model = network()
    quicken_convolutions(model)
    x = torch.randn(2, 3, 9, 9).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    first.square().sum().backward()
    assert model[1].weight.grad.abs().sum() > 0
