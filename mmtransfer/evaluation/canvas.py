"""What all pictures of an evaluation share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtransfer.drawing import drawing

BLUE, BROWN, GREY = "#35618f", "#b0703c", "#8a8a8a"


@contextmanager
def canvas(path: Path, title: str, size: tuple[float, float] = (5.5, 4.2)) -> Iterator[Any]:
    """Yields the axes of a picture, and writes it."""
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=size)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.set_title(title, loc="left")
        try:
            yield axes
            figure.tight_layout()
            figure.savefig(path, dpi=150)
        finally:
            pyplot.close(figure)


def colours(count: int) -> list[Any]:
    from matplotlib import pyplot

    palette = pyplot.get_cmap("viridis")
    return [palette(0.1 + 0.8 * k / max(1, count - 1)) for k in range(count)]
