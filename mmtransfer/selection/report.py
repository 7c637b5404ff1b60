"""Table and picture of a choice."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtransfer.drawing import drawing
from mmtransfer.selection.choose import Choice

SHOWN = 25


def show(choice: Choice) -> None:
    """The ranking, the distances, what is recommended and why, and the command that follows."""
    console = Console(width=None if sys.stdout.isatty() else 160, emoji=False)
    console.print(ranking(choice))
    hidden = len(choice.candidates) - SHOWN
    if hidden > 0:
        console.print(f"{hidden} more in the results")
    if choice.untried:
        console.print(f"{choice.untried} larger sets were not tried: raise most_sets")
    if choice.distances:
        console.print(distances(choice))
    if choice.correlation is not None:
        found = choice.correlation
        console.print(
            f"prediction and truth over {found['trained']} trained: Kendall's tau "
            f"{found['kendall']:.2f}, weighted tau {found['weighted']:.2f}"
        )
    spent = ", ".join(f"{what} {value:.1f} s" for what, value in choice.seconds.items())
    console.print(f"{choice.labels} labels of {choice.classes} classes; {spent}\n")
    console.print(f"[bold]{escape(choice.chosen.label)}, {choice.advice.strategy}[/bold]")
    for reason in choice.reasons:
        console.print(f"- {escape(reason)}", soft_wrap=True)
    print(f"\n{choice.command}")


def ranking(choice: Choice) -> Table:
    """Candidates, the best first."""
    title = escape(f"{choice.task}: {choice.score} of {choice.basis}")
    table = Table(title=title, title_justify="left")
    table.add_column("encoders")
    verified = any(c.trained is not None for c in choice.candidates)
    headings = ("predicted", "gain", "ms per row", *(("trained",) if verified else ()))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in choice.candidates[:SHOWN]:
        cells = [
            f"{candidate.score:.3f}",
            "" if candidate.gain is None else f"{candidate.gain:+.3f}",
            f"{candidate.row_milliseconds:.1f}",
        ]
        if verified:
            cells.append("" if candidate.trained is None else f"{candidate.trained:.3f}")
        label = escape(candidate.label)
        table.add_row(f"[bold]{label}[/bold]" if candidate is choice.chosen else label, *cells)
    return table


def distances(choice: Choice) -> Table:
    """Source to target, by column."""
    table = Table(title="distance of the sources", title_justify="left")
    table.add_column("source")
    table.add_column("column")
    first = next(iter(next(iter(choice.distances.values())).values()))
    for name in first:
        table.add_column(name, justify="right")
    for source, columns in choice.distances.items():
        for name, found in columns.items():
            table.add_row(
                escape(source), escape(name), *(f"{value:.3g}" for value in found.values())
            )
    return table


def draw(choice: Choice, path: Path) -> None:
    """Bars of what is predicted; beside them prediction against truth where there is one."""
    with drawing() as pyplot:
        shown = choice.candidates[:SHOWN]
        trained = [c for c in choice.candidates if c.trained is not None]
        columns = 2 if trained else 1
        size = (7.5 + 4.5 * (columns - 1), max(3.5, 0.3 * len(shown) + 1.4))
        figure, panels = pyplot.subplots(1, columns, figsize=size, squeeze=False)
        axes = panels[0][0]
        colours = ["#b0703c" if c is choice.chosen else "#35618f" for c in shown]
        axes.barh(range(len(shown)), [c.score for c in shown], color=colours, height=0.72)
        axes.set_yticks(range(len(shown)), [c.label for c in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(choice.score)
        axes.set_title(f"{choice.task}: predicted", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if trained:
            axes = panels[0][1]
            axes.scatter([c.score for c in trained], [c.trained for c in trained], color="#35618f")
            axes.set_xlabel(f"predicted, {choice.score}")
            axes.set_ylabel("trained")
            found = choice.correlation
            title = "prediction and truth"
            if found is not None:
                title += f": weighted τ {found['weighted']:.2f}, Kendall's τ {found['kendall']:.2f}"
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
