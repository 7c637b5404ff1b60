"""Pictures of curves over training, of forgetting, and of scores by number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtransfer.evaluation.canvas import BLUE, GREY, canvas, colours
from mmtransfer.evaluation.curves import LabelPoint


def draw_learning(curves: Mapping[str, Any], path: Path) -> None:
    with canvas(path, "learning curves") as axes:
        names = [n for n in curves if n == "train_loss" or n.endswith("/loss")]
        for name, colour in zip(names, colours(len(names)), strict=True):
            points = [(k + 1, v) for k, v in enumerate(curves[name]) if v is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, label=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)


def draw_forgetting(found: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Scores on the source, as `forgetting` gives them."""
    bars = {f"{task}, {score}": v for task, of in found.items() for score, v in of.items()}
    with canvas(path, "scores on the source", (6.5, 0.5 * len(bars) + 1.6)) as axes:
        for shift, (when, colour) in zip(
            (-0.2, 0.2), (("before", GREY), ("after", BLUE)), strict=True
        ):
            places = [k + shift for k in range(len(bars))]
            drawn = axes.barh(
                places, [v[when] for v in bars.values()], 0.36, color=colour, label=when
            )
            axes.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
        axes.margins(x=0.12)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_label_efficiency(
    series: Mapping[str, Sequence[LabelPoint]], path: Path, measure: str = "accuracy"
) -> None:
    """Mean score by number of labels, with its interval, of each name in `series`."""
    with canvas(path, f"{measure} by number of labels") as axes:
        for (name, points), colour in zip(series.items(), colours(len(series)), strict=True):
            labels, means = [p.labels for p in points], [p.mean for p in points]
            widths = [
                p.interval if p.interval == p.interval else 0.0 for p in points
            ]  # of one seed NaN
            axes.errorbar(
                labels, means, widths, color=colour, marker="o", markersize=3, capsize=2, label=name
            )
        axes.set_xscale("log")
        axes.set_xticks(sorted({p.labels for points in series.values() for p in points}))
        axes.get_xaxis().set_major_formatter("{x:.0f}")
        axes.minorticks_off()
        axes.set_xlabel("labels")
        axes.set_ylabel(measure)
        axes.legend(frameon=False)
