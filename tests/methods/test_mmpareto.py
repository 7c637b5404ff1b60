"""MMPareto: two gradients by hand, in harmony and in conflict."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.mmpareto import MMPareto, combine


def integrated(joint, own):
    return combine(torch.tensor(joint), torch.tensor(own))


def test_gradients_without_a_conflict_are_added():
    assert integrated([1.0, 2.0], [3.0, 0.0]).tolist() == [4.0, 2.0]
    assert integrated([1.0, 0.0], [0.0, 2.0]).tolist() == [1.0, 2.0]
    assert integrated([1.0, 2.0], [0.0, 0.0]).tolist() == [1.0, 2.0]


def test_gradients_in_conflict_give_a_direction_that_lowers_both_losses():
    joint, own = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    found = combine(joint, own)
    share = (2 + 2) / (4 + 2 + 4)  # own (own - joint) / |joint - own|^2
    shortest = share * joint + (1 - share) * own
    torch.testing.assert_close(found / found.norm(), shortest / shortest.norm())
    torch.testing.assert_close(found.norm(), (joint + own).norm().clamp_min(2 * shortest.norm()))
    assert found @ joint > 0
    assert found @ own > 0


def test_what_the_weights_made_shorter_gets_the_length_of_the_sum():
    joint, own = torch.tensor([10.0, 1.0]), torch.tensor([-1.0, 1.0])
    found = combine(joint, own)
    assert float(found.norm()) == pytest.approx(float((joint + own).norm()))
    assert float(found @ joint) > 0
    assert float(found @ own) > 0


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_the_result_grows_with_the_gradients(scale):
    joint, own = torch.tensor([10.0, 1.0]), torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(combine(scale * joint, scale * own), scale * combine(joint, own))


def test_opposite_gradients_cancel():
    assert not integrated([1.0, 0.0], [-1.0, 0.0]).isnan().any()
    assert not integrated([0.0, 0.0], [0.0, 0.0]).any()


def test_a_gamma_of_zero_is_refused():
    with pytest.raises(ValueError, match="greater than 0, found 0"):
        MMPareto(0)
