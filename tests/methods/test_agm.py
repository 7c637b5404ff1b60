"""AGM: Shapley shares of an output, and factors from them, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mmtransfer.features import proper_subsets
from mmtransfer.methods.agm import AGM, coefficients, shapley
from mmtransfer.transfer.base import Phase


def test_two_modalities_share_as_in_the_paper():
    a, b, both = (torch.randn(5, 1, 4) for _ in range(3))
    present = torch.ones(5, 2, dtype=torch.bool)
    found = shapley(torch.cat([a, b, both], 1), present, ["a", "b"])
    torch.testing.assert_close(found[:, 0], (both - b + a)[:, 0] / 2)
    torch.testing.assert_close(found[:, 1], (both - a + b)[:, 0] / 2)


def test_three_modalities_share_by_all_orders_of_joining():
    names = ["a", "b", "c"]
    subsets = [*proper_subsets(names), tuple(names)]
    logits = torch.randn(2, 7, 4)
    value = {frozenset(s): logits[:, k] for k, s in enumerate(subsets)}
    value[frozenset()] = torch.zeros(2, 4)
    found = shapley(logits, torch.ones(2, 3, dtype=torch.bool), names)
    for k, name in enumerate(names):
        expected = torch.zeros(2, 4)
        orders = ["abc", "acb", "bac", "bca", "cab", "cba"]
        for order in orders:
            before = frozenset(order[: order.index(name)])
            expected += (value[before | {name}] - value[before]) / len(orders)
        torch.testing.assert_close(found[:, k], expected)
    torch.testing.assert_close(found.sum(1), logits[:, -1])


def test_an_absent_modality_has_no_share():
    logits = torch.randn(3, 3, 4)
    logits[1, 2] = logits[1, 0]  # row 1 lacks b: with and without it is the same
    present = torch.tensor([[True, True], [True, False], [False, False]])
    found = shapley(logits, present, ["a", "b"])
    torch.testing.assert_close(found[1, 0], logits[1, 2])
    assert not found[1, 1].any()
    assert not found[2].any()


def test_factors_compare_a_lead_with_the_usual_one():
    losses, past = torch.tensor([0.5, 1.5]), torch.tensor([1.0, 1.2])
    known = torch.tensor([True, True])
    expected = [
        math.exp(2 * (math.exp(1.2 - 1.0) - math.exp(1.5 - 0.5))),
        math.exp(2 * (math.exp(1.0 - 1.2) - math.exp(0.5 - 1.5))),
    ]
    assert coefficients(losses, past, known, 2.0).tolist() == pytest.approx(expected)
    assert coefficients(losses, past, torch.tensor([True, False]), 2.0).tolist() == [1.0, 1.0]
    three = coefficients(
        torch.tensor([0.5, 1.5, 9.0]),
        torch.tensor([1.0, 1.2, 9.0]),
        torch.tensor([True, True, False]),
        2.0,
    )
    assert three.tolist() == pytest.approx([*expected, 1.0])


def test_losses_of_the_past_are_averaged_over_steps(fit):
    """With nothing moving, each step of all rows has the same losses, and so has their mean."""
    still, method = Phase(3, 1e-12, 1e-12), AGM()
    look = fit(method, phase=still, batch_size=24)[1].seen
    plain = fit(None, phase=still, batch_size=24)[1].seen
    name = "encoders.a.layers.0.0.weight"
    ratios = [float((a[name] / b[name]).mean()) for a, b in zip(look, plain, strict=True)]
    assert abs(ratios[0] - 1) > 1e-3  # the first is compared with an even past
    assert ratios[1:] == pytest.approx([1, 1], abs=1e-3)
    mean, steps = method.state_dict()["past"]
    assert steps.tolist() == [3, 3]
    lead = math.exp(float(mean[1] - mean[0]))
    assert ratios[0] == pytest.approx(math.exp(1 - lead), rel=1e-3)


def test_a_negative_alpha_is_refused():
    with pytest.raises(ValueError, match=r"at least 0, found -0.1"):
        AGM(-0.1)
