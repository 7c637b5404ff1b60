"""Intervals and paired tests against tables and simulation."""

import math
import random

import pytest

from mmtransfer.evaluation.statistics import interval, paired_p_value


def test_the_interval_is_that_of_students_table() -> None:
    # Three values 1, 2, 3: deviation 1, standard error 1 / sqrt(3), t = 4.303 at two degrees.
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(interval([1.0]))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    inside = 0
    for _ in range(2000):
        values = [draw.gauss(0.7, 0.1) for _ in range(5)]
        inside += abs(sum(values) / 5 - 0.7) <= interval(values)
    assert abs(inside / 2000 - 0.95) < 0.02


def test_the_paired_p_value_is_that_of_students_table() -> None:
    # Differences 1, 2, 3: t = 2 * sqrt(3) = 3.4641, two-sided p at two degrees of freedom 0.0742.
    assert paired_p_value([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(0.07418, abs=1e-5)
    assert paired_p_value([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_p_value([2.0, 3.0], [1.0, 2.0]) == 0.0
    assert math.isnan(paired_p_value([1.0], [2.0]))
    with pytest.raises(ValueError, match="found 1 and 2 values"):
        paired_p_value([1.0], [1.0, 2.0])
