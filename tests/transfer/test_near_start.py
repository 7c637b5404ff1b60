"""Strategies by name that keep near to where the weights started."""

from __future__ import annotations

from mmtransfer.methods.l2_sp import L2SP
from mmtransfer.methods.wise_ft import WiSEFT
from mmtransfer.transfer.base import build_strategy


def test_l2_sp_is_full_fine_tuning_with_another_aim():
    strategy, plain = build_strategy("l2_sp", alpha=0.3, epochs=5), build_strategy("full", epochs=5)
    (method,) = strategy.methods
    assert isinstance(method, L2SP)
    assert method.alpha == 0.3
    found, expected = strategy.config()["phases"], plain.config()["phases"]
    assert found == [expected[0] | {"weight_decay": 0.0}]


def test_wise_ft_is_lp_ft_that_goes_half_way():
    strategy = build_strategy("wise_ft", alpha=0.4)
    assert strategy.config()["phases"] == build_strategy("lp_ft").config()["phases"]
    (method,) = strategy.methods
    assert isinstance(method, WiSEFT)
    assert method.alpha == 0.4
