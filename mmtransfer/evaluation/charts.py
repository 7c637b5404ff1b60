"""Tables for the terminal and pictures for the eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtransfer.drawing import drawing

#: {group: {member: values, one per seed}}
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return float((sum((v - centre) ** 2 for v in values) / (len(values) - 1)) ** 0.5)


def members_of(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for group in scores.values() for name in group))


def print_scores(scores: Scores, title: str, corner: str = "") -> None:
    """A table of percentages, mean ± deviation over several seeds, best per row in bold."""
    members = members_of(scores)
    table = Table(title=escape(title), title_justify="left")
    table.add_column(corner)
    for name in members:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for group, found in scores.items():
        best = max(found, key=lambda name: mean(found[name]))
        cells = []
        for name in members:
            if name not in found:
                cells.append("")
                continue
            text = f"{100 * mean(found[name]):.1f}"
            if len(found[name]) > 1:
                text += f" ± {100 * deviation(found[name]):.1f}"
            cells.append(f"[bold]{text}[/bold]" if name == best else text)
        table.add_row(escape(group), *cells)
    Console(emoji=False).print(table)


def chart_scores(scores: Scores, title: str, path: Path, measure: str = "accuracy") -> None:
    """Grouped bars of a measure in percent, with deviation over seeds, written as a PNG."""
    with drawing() as pyplot:
        members = members_of(scores)
        span = 0.8 / len(members)
        figure, axes = pyplot.subplots(figsize=(max(6.0, 2.2 * len(scores) + 2), 4.2))
        colours = pyplot.get_cmap("viridis")
        for k, name in enumerate(members):
            spots = [g for g, found in enumerate(scores.values()) if name in found]
            values = [found[name] for found in scores.values() if name in found]
            heights = [100 * mean(v) for v in values]
            places = [g - 0.4 + span * (k + 0.5) for g in spots]
            bars = axes.bar(
                places,
                heights,
                span * 0.92,
                yerr=[100 * deviation(v) for v in values]
                if any(len(v) > 1 for v in values)
                else None,
                capsize=2,
                color=colours(0.1 + 0.8 * k / max(1, len(members) - 1)),
                label=name,
            )
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
        axes.set_xticks(range(len(scores)), list(scores))
        axes.set_ylabel(f"{measure} (%)")
        axes.set_ylim(0, 108)
        axes.set_yticks(range(0, 101, 20))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.set_title(title, loc="left")
        axes.legend(
            frameon=False, ncols=len(members), loc="upper center", bbox_to_anchor=(0.5, -0.1)
        )
        figure.savefig(path, dpi=150, bbox_inches="tight")  # a long legend is wider than the axes
        pyplot.close(figure)
