"""Curves hold the numbers that they were made of."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.evaluation.curves import forgetting, in_turns, label_efficiency, learning_curves
from mmtransfer.evaluation.statistics import interval


def test_every_epoch_has_its_place_on_every_curve() -> None:
    history = [
        {"phase": 1, "epoch": 1, "train_loss": 2.0, "validation": {"y": {"accuracy": 0.5}}},
        {"phase": 2, "epoch": 1, "train_loss": 1.0},
        {"phase": 2, "epoch": 2, "train_loss": 0.5, "validation": {"y": {"loss": 1, "rows": 9}}},
    ]
    assert learning_curves(history) == {
        "phase": [1, 2, 2],
        "train_loss": [2.0, 1.0, 0.5],
        "y/accuracy": [0.5, None, None],
        "y/loss": [None, None, 1],
    }
    assert learning_curves([]) == {}


def test_forgotten_is_what_the_source_lost() -> None:
    before = {"y": {"accuracy": 0.9, "loss": 1.0, "rows": 5}, "z": {"rows": 0}}
    after = {"y": {"accuracy": 0.6, "loss": 2.0, "rows": 5}, "z": {"rows": 0}}
    found = forgetting({"before": before, "after": after})
    assert found["y"].keys() == {"accuracy"}
    assert found["y"]["accuracy"] == {
        "before": 0.9,
        "after": 0.6,
        "forgotten": pytest.approx(0.3),
    }
    assert found["z"] == {}


def test_label_sets_are_nested_and_classes_take_turns() -> None:
    targets = torch.tensor([0] * 20 + [1] * 6 + [2] * 2)
    seen: dict[int, list[set[int]]] = {}

    def train(rows: list[int], seed: int) -> float:
        seen.setdefault(seed, []).append(set(rows))
        return len(rows) / 28 + seed

    found = label_efficiency(train, targets, [28, 3, 6], seeds=[0, 1])
    assert [point.labels for point in found] == [3, 6, 28]
    for sets in seen.values():
        assert sets[0] < sets[1] < sets[2] == set(range(28))
        assert sorted(targets[list(sets[1])].tolist()) == [0, 0, 1, 1, 2, 2]
    assert seen[0][0] != seen[1][0]
    assert found[0].scores == (3 / 28, 3 / 28 + 1)
    assert found[0].mean == pytest.approx(3 / 28 + 0.5)
    assert found[0].interval == interval(found[0].scores)
    assert sorted(in_turns(targets, 5)) == list(range(28))
    with pytest.raises(ValueError, match="1 to 28, found 29"):
        label_efficiency(train, targets, [29])
