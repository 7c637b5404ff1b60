"""Progress on the terminal: bars that vanish, lines that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

Item = TypeVar("Item")


class Progress:
    """Bars that vanish when their work is done; silent unless `shown`."""

    def __init__(self, shown: bool, title: str = "") -> None:
        # Titles have names of columns and encoders, with any brackets and colons.
        self.console = Console(stderr=True, quiet=not shown, markup=False, emoji=False)
        self.title, self.note = title, ""

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Yields a function that says how much more has been done."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        live = self.console.is_terminal and not self.console.quiet
        with Bars(*columns, console=self.console, transient=True, disable=not live) as bars:
            whole = ": ".join(part for part in (self.title, title) if part)
            task = bars.add_task(whole, total=total, completed=done, note="")
            yield lambda more: bars.update(task, advance=more, note=self.note)

    def track(self, items: Iterable[Item], title: str, total: int, done: int = 0) -> Iterator[Item]:
        with self.bar(title, total, done) as advance:
            for item in items:
                yield item
                advance(1)

    def show(self, **values: float) -> None:
        """Values to stand beside the bar."""
        shown = {"rows_per_second": "{:.1f} rows/s", "memory_mb": "{:.0f} MB"}
        self.note = "  ".join(
            shown.get(name, name + " {:.4f}").format(value) for name, value in values.items()
        )

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)
