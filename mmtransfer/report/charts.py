"""Figures as shapes for inline SVG, each with the table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 24, 44
COLOURS = 8  # that the style sheet has; further series begin again, dashed
LARGEST_MATRIX = 40

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Table:
    """Cells by row; the first of each row names it.

    best: per row the column whose value is set off, None for none
    open: shown even if long
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = True
    open: bool = False
    best: Sequence[int | None] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing of WIDTH by `height`; shapes are attributes by name, with their "kind"."""

    title: str
    label: str
    numbers: Table
    height: float = HEIGHT
    shapes: list[dict[str, Any]] = field(default_factory=list)
    legend: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Axes:
    """Places on the drawing of numbers between the ends of two axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the upper left corner."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        inner = self.height - TOP - BOTTOM
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(TOP + (1 - up) * inner, 1),
        )

    def drawn(self, x_label: str, y_label: str, whole: bool = False) -> list[dict[str, Any]]:
        """Grid lines, numbers and labels."""
        shapes: list[dict[str, Any]] = []
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            shapes.append(grid(LEFT, y, WIDTH - RIGHT, y))
            shapes.append(text(LEFT - 6, y + 4, short(value), "end"))
        for value in ticks(*self.x, whole=whole):
            x, _ = self.at(value, self.y[0])
            shapes.append(text(x, self.height - BOTTOM + 16, short(value), "middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        shapes.append(text(middle, self.height - 8, x_label, "middle"))
        shapes.append(text(2, TOP - 12, y_label, "start"))
        return shapes


def lines(
    title: str,
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    whole: bool = False,
    numbers: Table | None = None,
) -> Chart:
    """Curves; points where a series has few of them.  Values that are not finite are left out."""
    series = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    axes = Axes(
        x_range or span([x for points in series.values() for x, _ in points], padded=False),
        y_range or span([y for points in series.values() for _, y in points]),
    )
    shapes = axes.drawn(x_label, y_label, whole)
    if diagonal:
        (x1, y1), (x2, y2) = axes.at(0, 0), axes.at(1, 1)
        shapes.append({**grid(x1, y1, x2, y2), "dashed": True})
    for k, points in enumerate(series.values()):
        places = [axes.at(x, y) for x, y in points]
        if len(places) > 1:
            joined = " ".join(f"{x},{y}" for x, y in places)
            shapes.append({"kind": "line", "points": joined, "series": k})
        for x, y in places if len(places) <= 24 else ():
            shapes.append({"kind": "dot", "x": x, "y": y, "r": 2.6, "series": k})
    legend = list(enumerate(series)) if len(series) > 1 else []
    ends = [f"{n} ends at {short(p[-1][1])}" for n, p in series.items() if p]
    label = f"{title}: {y_label} over {x_label}; {'; '.join(ends)}"
    return Chart(title, label, numbers or by_x(title, series, x_label), HEIGHT, shapes, legend)


def by_x(title: str, series: Mapping[str, Points], x_label: str) -> Table:
    """One row per x, one column per series."""
    places = sorted({x for points in series.values() for x, _ in points})
    found = {name: dict(points) for name, points in series.items()}
    rows = [[short(x), *(values.get(x) for values in found.values())] for x in places]
    return Table(title, [x_label, *series], rows)


def bars(
    title: str,
    values: Sequence[tuple[str, float, tuple[float, float] | None]],
    measure: str,
    upper: float | None = None,
    note: str = "",
) -> Chart:
    """Horizontal bars from zero, with their intervals; names stand above them, however long."""
    ends = [v for _, value, bounds in values for v in (0.0, value, *(bounds or ()))]
    low, high = min(ends), max(*ends, upper or 0.0)
    step = 38
    height = step * len(values) + 8
    scale = (WIDTH - 2) / ((high - low) or 1)
    zero = round(1 - low * scale, 1)
    shapes: list[dict[str, Any]] = []
    for k, (name, value, bounds) in enumerate(values):
        top = step * k + 4
        shapes.append(text(1, top + 11, name, "start"))
        shapes.append(text(WIDTH - 1, top + 11, f"{value:.3f}", "end"))
        x, end = sorted((zero, zero + value * scale))
        bar = {"x": round(x, 1), "y": top + 17, "width": round(max(end - x, 1), 1), "height": 11}
        shapes.append({"kind": "bar", **bar, "series": 0})
        if bounds:
            left, right = (round(zero + bound * scale, 1) for bound in bounds)
            shapes.append({"kind": "whisker", "x1": left, "x2": right, "y": top + 22.5})
    shapes.append(grid(zero, 0, zero, height))
    columns = ["", measure]
    rows: list[list[Any]] = [[name, value] for name, value, _ in values]
    if any(bounds for _, _, bounds in values):
        columns += ["from", "to"]
        rows = [[*r, *(b or (None, None))] for r, (_, _, b) in zip(rows, values, strict=True)]
    said = "; ".join(f"{name} {value:.3f}" for name, value, _ in values[:12])
    return Chart(
        title, f"{title}, {measure}: {said}", Table(title, columns, rows), height, shapes, note=note
    )


def scatter(
    title: str, points: Points, groups: Sequence[int], names: Sequence[Any], note: str
) -> Chart:
    """Points coloured by group, grey for a negative one; numbers are the middles of the groups."""
    axes = Axes(span([x for x, _ in points]), span([y for _, y in points]))
    shapes: list[dict[str, Any]] = []
    groups = list(groups) or [-1] * len(points)
    present = sorted({g for g in groups if g >= 0})
    few = len(present) <= COLOURS
    for (x, y), group in zip(points, groups, strict=True):
        across, up = axes.at(x, y)
        dot: dict[str, Any] = {"kind": "dot", "x": across, "y": up, "r": 2.4, "faint": True}
        if group >= 0 and few:
            dot["series"] = present.index(group)
        elif group >= 0:
            dot["hue"] = round(360 * present.index(group) / len(present))
        shapes.append(dot)
    rows = []
    for group in present:
        inside = [point for point, g in zip(points, groups, strict=True) if g == group]
        middle = [sum(place) / len(inside) for place in zip(*inside, strict=True)]
        rows.append([str(names[group]) if group < len(names) else group, len(inside), *middle])
    table = Table(f"{title}: middles of the classes", ["class", "rows", "x", "y"], rows)
    legend = [(k, str(names[g])) for k, g in enumerate(present)] if few and names else []
    label = f"{title}: {len(points)} rows of {len(present)} classes"
    return Chart(title, label, table, HEIGHT, shapes, legend, note)


def matrix(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Chart | None:
    """Shares of each true class's rows by predicted class; None for too many classes."""
    size = len(names)
    if not 1 < size <= LARGEST_MATRIX:
        return None
    longest = max(len(name) for name in names)
    margin = min(110.0, 12 + 5.2 * longest)
    cell = (WIDTH - margin - 4) / size
    font = max(5.0, min(11.0, 0.7 * cell))
    keep = max(3, int((margin - 8) / (0.52 * font)))
    height = round(margin + cell * size + 4, 1)
    shapes: list[dict[str, Any]] = []
    for t, line in enumerate(counts):
        middle = margin + cell * (t + 0.5)
        name = cropped(names[t], keep)
        shapes.append({**text(margin - 5, middle + font / 3, name, "end"), "font": font})
        shapes.append({**text(middle, margin - 5, name, "start"), "font": font, "upright": True})
        total = max(1, sum(line))
        for p, value in enumerate(line):
            x, y = round(margin + cell * p, 1), round(margin + cell * t, 1)
            side = round(cell - 0.6, 1)
            shapes.append(
                {"kind": "cell", "x": x, "y": y, "side": side, "share": round(value / total, 3)}
            )
            if value and cell >= 20:
                middle_x, middle_y = x + side / 2, y + side / 2 + 4
                shown = {**text(middle_x, middle_y, str(value), "middle"), "font": 10}
                shapes.append({**shown, "inverse": value > 0.55 * total})
    table = Table(
        f"{title}: rows of each true class (line) by predicted class (column)",
        ["true class", *names],
        [[name, *line] for name, line in zip(names, counts, strict=True)],
        sortable=False,
    )
    right = sum(counts[k][k] for k in range(size))
    label = f"{title}: {right} of {sum(map(sum, counts))} rows on the diagonal"
    return Chart(title, label, table, height, shapes, note="Lines: true. Columns: predicted.")


def span(values: Sequence[float], padded: bool = True) -> tuple[float, float]:
    """Ends of an axis that shows all values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    room = 0.04 * (high - low) if padded else 0.0
    return low - room, high + room


def ticks(low: float, high: float, whole: bool = False, most: int = 6) -> list[float]:
    """Round numbers on an axis."""
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Few digits, no trailing zeros."""
    return f"{value:.4g}".replace("-0", "0") if value == 0 else f"{value:.4g}"


def cropped(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def text(x: float, y: float, content: str, anchor: str) -> dict[str, Any]:
    place = {"x": round(x, 1), "y": round(y, 1)}
    return {"kind": "text", **place, "content": content, "anchor": anchor}


def grid(x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    return {"kind": "grid", "x1": x1, "y1": y1, "x2": x2, "y2": y2}
