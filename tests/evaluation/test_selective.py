"""Risk and coverage against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmtransfer.evaluation.selective import (
    accuracy_at,
    aurc,
    confidence_of,
    excess_aurc,
    risk_coverage,
    thinned,
)


def test_the_curve_is_the_error_rate_of_the_surest_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(40, generator=generator)
    correct = torch.rand(40, generator=generator) < confidence
    coverage, risk = risk_coverage(confidence, correct)
    order = confidence.argsort(descending=True)
    expected = [float((~correct[order[:k]]).double().mean()) for k in range(1, 41)]
    assert risk.tolist() == pytest.approx(expected)
    assert coverage.tolist() == pytest.approx([k / 40 for k in range(1, 41)])
    assert aurc(confidence, correct) == pytest.approx(sum(expected) / 40)
    found = accuracy_at(confidence, correct, (0.25, 0.001, 1.0))
    assert found == pytest.approx(
        {0.25: 1 - expected[9], 0.001: 1 - expected[0], 1.0: float(correct.double().mean())}
    )
    few = thinned(confidence, correct, 7)
    assert len(few) == 7
    assert few[-1] == pytest.approx((1.0, expected[-1]))


def test_ties_count_as_the_mean_over_all_their_orders() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.1])
    correct = torch.tensor([True, False, True, True, False])
    areas = []
    for middle in itertools.permutations([1, 2, 3]):
        order = torch.tensor([0, *middle, 4])
        wrong = (~correct[order]).double().cumsum(0) / torch.arange(1, 6)
        areas.append(float(wrong.mean()))
    assert aurc(confidence, correct) == pytest.approx(sum(areas) / len(areas))
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    assert aurc(confidence[shuffled], correct[shuffled]) == aurc(confidence, correct)


def test_nothing_is_in_excess_when_all_errors_come_last() -> None:
    correct = torch.tensor([True, True, False, True, False])
    perfect = torch.tensor([0.9, 0.8, 0.2, 0.7, 0.1])
    assert excess_aurc(perfect, correct) == pytest.approx(0, abs=1e-12)
    assert excess_aurc(-perfect, correct) > 0.1


def test_confidence_is_the_largest_probability_and_mistakes_are_named() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert float(confidence_of(logits)) == pytest.approx(float(logits.softmax(1).max()))
    with pytest.raises(ValueError, match=r"found \(2,\) and \(3,\)"):
        risk_coverage(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="coverage .* found 1.5"):
        accuracy_at(torch.zeros(2), torch.zeros(2), [1.5])
