"""The strategy follows from labels, time and distance, and says so."""

from __future__ import annotations

import pytest

from mmtransfer.registry import strategies
from mmtransfer.selection.advice import advise, estimate_minutes

MINUTES = {"linear_probe": 0.5, "lp_ft": 20.0, "full": 25.0}


@pytest.mark.parametrize(
    ("labels", "budget", "apart", "strategy", "reason"),
    [
        (60, None, {}, "linear_probe", "6.0 labels per class are few"),
        (600, None, {}, "lp_ft", "60 labels per class are enough to fine-tune"),
        (6000, None, {}, "full", "600 labels per class are enough to train everything"),
        (6000, None, {"image": 0.1}, "lp_ft", "image looks as in the source"),
        (6000, None, {"image": 1.8}, "full", "image is far from the source"),
        (600, 10, {}, "linear_probe", "lp_ft would take about 20 of the 10 minutes"),
        (6000, 22, {}, "lp_ft", "full would take about 25 of the 22 minutes"),
        (6000, 10, {}, "linear_probe", "lp_ft would take about 20 of the 10 minutes"),
        (600, 0.1, {}, "linear_probe", "even linear_probe takes about 0.5 minutes"),
        (600, 30, {}, "lp_ft", "enough to fine-tune"),
    ],
)
def test_strategies_and_reasons(labels, budget, apart, strategy, reason) -> None:
    found = advise(labels, 10, MINUTES, budget, apart)
    assert found.strategy == strategy
    assert found.strategy in strategies
    assert any(reason in told for told in found.reasons), found.reasons


def test_minutes_grow_with_rows_and_the_cost_of_a_row() -> None:
    small, more, slow = (
        estimate_minutes(*given) for given in ((100, 10, 0.1), (200, 20, 0.1), (100, 10, 0.2))
    )
    assert set(small) == set(MINUTES)
    for name in ("lp_ft", "full"):
        assert more[name] == pytest.approx(2 * small[name], rel=0.1)
        assert slow[name] == pytest.approx(2 * small[name], rel=0.1)
    assert slow["linear_probe"] == small["linear_probe"] < small["lp_ft"]
