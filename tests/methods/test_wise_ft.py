"""WiSE-FT: where the start is, and what lies between it and the end."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.wise_ft import WiSEFT

from .looking import small_model


def test_encoders_are_interpolated_and_new_heads_are_not():
    model, method = small_model(), WiSEFT(0.25)
    assert method.averaged(model) == {}
    start = {n: t.clone() for n, t in model.state_dict().items()}
    method.on_gradients(model, lambda: None)
    for p in model.parameters():
        p.data += 1
    method.on_gradients(model, lambda: None)  # the start stays where it was
    found = method.averaged(model)
    assert all(name.startswith("encoders.") for name in found)
    assert len(found) == 4
    for name, value in found.items():
        torch.testing.assert_close(value, start[name] + 0.25)


def test_after_a_probe_the_heads_go_half_way_too():
    model, method = small_model(), WiSEFT()
    for encoder in model.encoders.values():
        encoder.requires_grad_(False)
    method.on_gradients(model, lambda: None)
    model.heads["kind"].bias.data += 3  # what the probe learned
    model.requires_grad_(True)
    method.on_gradients(model, lambda: None)
    probed = model.heads["kind"].bias.detach().clone()
    model.heads["kind"].bias.data += 2
    torch.testing.assert_close(method.averaged(model)["heads.kind.bias"], probed + 1)
    other = WiSEFT()
    other.load_state_dict(method.state_dict())
    for name, value in method.averaged(model).items():
        assert torch.equal(other.averaged(model)[name], value)


@pytest.mark.parametrize("joint", [True, False])
def test_heads_may_be_asked_for_or_left(joint):
    model, method = small_model(), WiSEFT(joint=joint)
    method.on_gradients(model, lambda: None)
    assert any(name.startswith("heads.") for name in method.averaged(model)) == joint


def test_an_alpha_out_of_bounds_is_refused():
    with pytest.raises(ValueError, match=r"alpha of wise_ft must lie in \[0, 1\], found 2"):
        WiSEFT(2)


def test_what_a_later_phase_leaves_frozen_goes_no_further_back():
    model, method = small_model(), WiSEFT(0.5, joint=True)
    method.on_gradients(model, lambda: None)
    for p in model.parameters():
        p.data += 1
    model.load_state_dict(method.averaged(model), strict=False)
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.encoders["a"].requires_grad_(False)
    found = method.averaged(model)
    for name, value in kept.items():
        expected = value - (0 if name.startswith("encoders.a.") else 0.25)
        torch.testing.assert_close(found[name], expected)
