"""RKD: distances and angles in plain loops, and what they do not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmtransfer.methods.rkd import RKD, angles, distances

from .conftest import numbers
from .looking import batch_of, looking, losses_of, small_model


def test_distances_are_over_their_mean():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(distances(x), expected)


def test_angles_are_those_at_the_first_of_three():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    found = angles(x)
    for i in range(4):
        for j in range(4):
            for k in range(4):
                expected = F.cosine_similarity(x[j] - x[i], x[k] - x[i], 0)
                assert abs(float(found[i, j, k] - expected)) < 1e-5


def test_turning_moving_and_scaling_change_nothing():
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    turned = 7 * x @ torch.linalg.qr(torch.randn(3, 3))[0] + 2
    torch.testing.assert_close(distances(turned), distances(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(angles(turned), angles(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("nearly", [0.0, 1e-7])
def test_equal_rows_that_a_teacher_tells_apart_have_a_small_gradient(nearly):
    torch.manual_seed(0)
    rows, teacher = torch.randn(4, 3), torch.randn(8, 5)
    x = torch.cat([rows, rows + nearly]).requires_grad_()
    F.smooth_l1_loss(distances(x), distances(teacher)).backward()
    F.smooth_l1_loss(angles(x), angles(teacher)).backward()
    assert 0 < x.grad.abs().max() < 1
    same = angles(x)[torch.arange(8), torch.arange(8).roll(4)]  # (8, 8), from a row to its equal
    assert torch.equal(same, torch.zeros(8, 8))


def test_its_own_fused_vectors_cost_nothing_and_fillers_have_no_part(tmp_path):
    model, rows = small_model(), numbers(missing=False)
    model.save_pretrained(tmp_path)
    method = RKD(str(tmp_path))
    method.build(model)
    method.begin(model, looking(model, rows))
    batch = batch_of(model, [*list(enumerate(rows))[:5], (~0, rows[0])])
    model.provide(("fused",))
    outputs = model.train()(batch.inputs, len(batch))
    loss = losses_of(model, batch, outputs)
    assert abs(float(method.on_loss(loss, model, batch, outputs) - loss)) < 1e-4
    outputs.fused = outputs.fused.detach().clone()
    outputs.fused[5] += 9
    assert abs(float(method.on_loss(loss, model, batch, outputs) - loss)) < 1e-4
    outputs.fused[4] += 9
    expected = 25 * F.smooth_l1_loss(
        distances(outputs.fused[:5]), distances(method._answers.of("fused", batch)[:5])
    ) + 50 * F.smooth_l1_loss(
        angles(outputs.fused[:5]), angles(method._answers.of("fused", batch)[:5])
    )
    torch.testing.assert_close(method.on_loss(loss, model, batch, outputs), loss + expected)
    assert expected > 0.1
