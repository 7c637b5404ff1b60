"""Figures are true to their numbers."""

from __future__ import annotations

import itertools
import math

import pytest

from mmtransfer.report.charts import LEFT, RIGHT, WIDTH, bars, lines, matrix, scatter, ticks


@pytest.mark.parametrize("ends", [(0, 1), (-0.3, 0.7), (12.4, 13.1), (0, 4321), (-1e-5, 1e-5)])
def test_ticks_are_round_and_inside(ends) -> None:
    found = ticks(*ends)
    assert 2 <= len(found) <= 8
    assert all(ends[0] - 1e-9 <= value <= ends[1] + 1e-9 for value in found)
    steps = {round((b - a) / 10 ** math.floor(math.log10(b - a)), 6) for a, b in
             itertools.pairwise(found)}  # fmt: skip
    assert steps <= {1, 2, 5, 10}


def test_ticks_of_epochs_are_whole() -> None:
    assert ticks(1, 3, whole=True) == [1, 2, 3]


def test_curves_are_where_their_numbers_are() -> None:
    chart = lines("Loss", {"a": [(0, 0), (5, 1), (10, 4)], "b": [(0, math.nan), (10, 2)]}, "x", "y")
    (line,) = [s for s in chart.shapes if s["kind"] == "line"]  # b has one point only
    places = [tuple(map(float, place.split(","))) for place in line["points"].split()]
    xs, ys = zip(*places, strict=True)
    assert (xs[0], xs[-1]) == (LEFT, WIDTH - RIGHT)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2)
    assert (ys[0] - ys[1]) / (ys[0] - ys[2]) == pytest.approx(1 / 4, abs=0.01)
    assert chart.numbers.rows == [["0", 0, None], ["5", 1, None], ["10", 4, 2]]
    assert len([s for s in chart.shapes if s["kind"] == "dot"]) == 4


def test_bars_are_as_long_as_their_values_and_begin_at_zero() -> None:
    chart = bars("x", [("a", 0.5, (0.25, 0.75)), ("b", -0.25, None)], "points")
    first, second = [s for s in chart.shapes if s["kind"] == "bar"]
    (zero,) = [s["x1"] for s in chart.shapes if s["kind"] == "grid"]
    assert first["x"] == pytest.approx(zero)
    assert second["x"] + second["width"] == pytest.approx(zero, abs=0.2)
    assert first["width"] == pytest.approx(2 * second["width"], abs=0.2)
    (whisker,) = [s for s in chart.shapes if s["kind"] == "whisker"]
    middle = (whisker["x1"] + whisker["x2"]) / 2
    assert middle == pytest.approx(first["x"] + first["width"], abs=0.2)
    assert chart.numbers.rows == [["a", 0.5, 0.25, 0.75], ["b", -0.25, None, None]]


def test_a_matrix_shows_shares_of_lines_and_every_count() -> None:
    counts = [[3, 1], [0, 0]]
    chart = matrix("Confusion", counts, ["a", "b"])
    assert chart is not None
    assert [s["share"] for s in chart.shapes if s["kind"] == "cell"] == [0.75, 0.25, 0, 0]
    assert chart.numbers.rows == [["a", 3, 1], ["b", 0, 0]]
    assert matrix("Confusion", [[0] * 41] * 41, list(map(str, range(41)))) is None


def test_a_map_has_every_point_and_the_middles_of_its_classes() -> None:
    points = [(0.0, 0.0), (2.0, 4.0), (9.0, 9.0)]
    chart = scatter("PCA", points, [1, 1, -1], ["a", "b"], "")
    dots = [s for s in chart.shapes if s["kind"] == "dot"]
    assert len(dots) == 3
    assert [s.get("series") for s in dots] == [0, 0, None]
    assert chart.numbers.rows == [["b", 2, 1.0, 2.0]]
