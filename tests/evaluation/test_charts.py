"""Table and chart show every number that they are given."""

from __future__ import annotations

import statistics

from PIL import Image

from mmtransfer.evaluation.charts import chart_scores, deviation, mean, print_scores

SCORES = {"full": {"image": [0.5, 0.7], "all": [0.9, 0.8]}, "probe": {"all": [0.25]}}


def test_mean_and_deviation_are_those_of_the_sample():
    values = [0.1, 0.5, 0.6, 0.9]
    assert abs(mean(values) - statistics.mean(values)) < 1e-12
    assert abs(deviation(values) - statistics.stdev(values)) < 1e-12
    assert deviation([0.3]) == 0


def test_the_table_has_every_cell(capsys):
    print_scores(SCORES, "Accuracy")
    shown = capsys.readouterr().out
    for cell in ("Accuracy", "image", "all", "60.0 ± 14.1", "85.0 ± 7.1", "25.0"):
        assert cell in shown


def test_the_chart_is_a_picture_with_bars_of_the_right_height(tmp_path, monkeypatch):
    from matplotlib import axes

    heights = []
    plain = axes.Axes.bar
    monkeypatch.setattr(
        axes.Axes,
        "bar",
        lambda self, x, h, *a, **k: heights.append(h) or plain(self, x, h, *a, **k),
    )
    chart_scores(SCORES, "Accuracy", tmp_path / "chart.png")
    assert [[round(h) for h in group] for group in heights] == [[60], [85, 25]]
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size[0] > 600


def test_names_are_neither_formulas_nor_markup(tmp_path, capsys):
    scores = {"[/red]:x:": {"a$b_$": [0.5]}}
    print_scores(scores, "[/]")
    assert "[/red]:x:" in capsys.readouterr().out
    chart_scores(scores, "a$b_$", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").is_file()


def test_a_legend_that_is_wider_than_the_axes_is_not_cut(tmp_path):
    names = [f"a strategy with a long name, {k}" for k in range(6)]
    chart_scores({"product": {name: [0.5] for name in names}}, "Accuracy", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 10 * 150  # inches that six such names need
