"""L2-SP: the gradients of its formula, by hand."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.l2_sp import L2SP

from .looking import small_model


def moved(model):
    """Weights elsewhere, with gradients of 1 but for one that has none."""
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
        parameter.grad = torch.ones_like(parameter)
    model.encoders["b"].layers[0][0].bias.grad = None


def test_old_weights_are_pulled_to_their_start_and_new_ones_to_zero():
    model, method = small_model(), L2SP(alpha=0.5, beta=0.25, new=("fusion", "heads", "encoders.b"))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    method.begin(model, None)
    moved(model)
    method.on_gradients(model, lambda: None)
    for name, p in model.named_parameters():
        if name == "encoders.b.layers.0.0.bias":
            assert p.grad is None
            continue
        old = name.startswith("encoders.a")
        expected = 1 + (0.5 * (p - start[name]) if old else 0.25 * p)
        torch.testing.assert_close(p.grad, expected.detach())


def test_the_state_is_the_start():
    model, method, other = small_model(), L2SP(), L2SP()
    method.begin(model, None)
    other.load_state_dict(method.state_dict())
    moved(model)
    method.on_gradients(model, lambda: None)
    found = [p.grad for p in model.parameters()]
    moved_grads = [None if g is None else g.clone() for g in found]
    for p in model.parameters():
        p.grad = None if p.grad is None else torch.ones_like(p)
    other.on_gradients(model, lambda: None)
    for p, expected in zip(model.parameters(), moved_grads, strict=True):
        assert (p.grad is None) == (expected is None)
        assert expected is None or torch.equal(p.grad, expected)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"alpha of l2_sp must be at least 0, found -1"):
        L2SP(alpha=-1.0)
    with pytest.raises(ValueError, match=r"begins with 'encoders.c'.*mean 'encoders\.b'"):
        L2SP(new=["encoders.c"]).begin(small_model(), None)
