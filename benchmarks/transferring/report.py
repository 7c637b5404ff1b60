"""Means, intervals and gains over the baseline; as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from mmtransfer.benchmark.report import finish
from mmtransfer.drawing import drawing
from mmtransfer.evaluation.statistics import interval
from transferring.cells import Cell, Figures

#: by table, member and kind of accuracy: mean, interval, gain, gain_interval; and CPU seconds
Summary = dict[str, dict[str, dict[str, dict[str, float]]]]

ACROSS = 4  # panels of a picture


def summarise(
    results: Sequence[tuple[Cell, Figures]], baselines: Mapping[str, str], order: Sequence[str]
) -> Summary:
    """Means over seeds with 95 % intervals of Student's t; gains are in pairs of equal seed.

    baselines: the member that others are compared with, by kind of figure
    order: of the members
    """
    found: dict[str, dict[str, dict[int, Figures]]] = {}
    for cell, figures in results:
        found.setdefault(cell.setting, {}).setdefault(cell.member, {})[cell.seed] = figures
    summary: Summary = {}
    for setting, members in found.items():
        for name in sorted(members, key=order.index):
            told = {"cpu": {"mean": mean(f["cpu"] for f in members[name].values())}}
            for kind, baseline in baselines.items():
                if kind in next(iter(members[name].values())):
                    told[kind] = compared(members[name], members.get(baseline, {}), kind)
            summary.setdefault(setting, {})[name] = told
    return summary


def compared(
    own: Mapping[int, Figures], others: Mapping[int, Figures], kind: str
) -> dict[str, float]:
    values = [own[seed][kind] for seed in sorted(own)]
    told = {"mean": mean(values), "interval": interval(values), "seeds": len(values)}
    gains = [own[seed][kind] - others[seed][kind] for seed in sorted(own.keys() & others.keys())]
    if gains:
        told |= {"gain": mean(gains), "gain_interval": interval(gains)}
    return told


def better(summary: Mapping[str, Mapping[str, Mapping[str, float]]], kind: str) -> list[str]:
    """Members of a table that beat the baseline by more than the interval of the difference."""
    return [
        name
        for name, kinds in summary.items()
        if kinds.get(kind, {}).get("gain", 0.0) > kinds.get(kind, {}).get("gain_interval", 0.0)
    ]


def show(summary: Summary) -> None:
    """A table for each setting, in percent and points."""
    for setting, members in summary.items():
        table = Table(title=setting, title_justify="left", box=None, pad_edge=False)
        headings, *rows = lines(members)
        table.add_column(headings[0])
        for heading in headings[1:]:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        Console(width=120).print(table)


def lines(members: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Headings, then the members with means and gains, in percent and points."""
    kinds = list(dict.fromkeys(k for told in members.values() for k in told if k != "cpu"))
    found = [["", *(heading for kind in kinds for heading in (kind, "gain")), "CPU s"]]
    for name, told in members.items():
        cells = [text for kind in kinds for text in shown(told.get(kind, {}))]
        found.append([name, *cells, f"{told['cpu']['mean']:.0f}" if "cpu" in told else ""])
    return found


def shown(figures: Mapping[str, float]) -> tuple[str, str]:
    """Mean and gain with their intervals."""
    if not figures:
        return "", ""
    value = f"{100 * figures['mean']:.1f} ± {100 * figures['interval']:.1f}"
    if not figures.get("gain"):  # the baseline
        return value, ""
    return value, f"{100 * figures['gain']:+.1f} ± {100 * figures['gain_interval']:.1f}"


def draw(summary: Summary, kind: str, path: Path) -> None:
    """Bars of one kind of accuracy with intervals, a panel for each setting, as a PNG."""
    with drawing() as pyplot:
        panels = {
            setting: {name: told[kind] for name, told in members.items() if kind in told}
            for setting, members in summary.items()
        }
        height = 0.8 + 0.24 * max(len(panel) for panel in panels.values())
        across = min(ACROSS, len(panels))
        down = math.ceil(len(panels) / across)
        size = (2 + 3.6 * across, 0.4 + height * down)
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (setting, panel) in zip(axes.flat, panels.items(), strict=False):
            names = sorted(panel, key=lambda name: panel[name]["mean"])
            values = [100 * panel[name]["mean"] for name in names]
            errors = [100 * panel[name]["interval"] for name in names]
            bars = axis.barh(names, values, xerr=errors, capsize=2, color="#3b6ea5")
            axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=3)
            axis.set_title(setting, loc="left", fontsize=9)
            axis.set_xlim(0, 1.15 * max(values))
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(f"{kind} (%)", fontsize=8)
        finish(figure, path)
