"""Table, JSON and pictures of the fusion benchmark."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtransfer.benchmark.fusion import BASELINE
from mmtransfer.drawing import drawing
from mmtransfer.evaluation.charts import mean
from mmtransfer.evaluation.statistics import interval, paired_p_value

Results = Mapping[str, Any]


def summarise(results: Results) -> list[dict[str, Any]]:
    """One entry per member, the best first: means over seeds, 95 % intervals, p against concat.

    subsets: accuracy of the main task with only these modalities present; noise: by modality and
    level
    """
    task = results["task"]
    baseline = [run["test"][task] for run in results["members"].get(BASELINE, [])]
    rows = []
    for member, runs in results["members"].items():
        values = [run["test"][task] for run in runs]
        others = [n for n in runs[0]["test"] if n != task and " " not in n]
        comparable = len(baseline) == len(values) and member != BASELINE
        rows.append(
            {
                "fusion": member,
                "accuracy": mean(values),
                "interval": interval(values),
                "p": paired_p_value(values, baseline) if comparable else None,
                "others": {n: mean([run["test"][n] for run in runs]) for n in others},
                "ece": mean([run["test"].get(f"{task} ece", float("nan")) for run in runs]),
                "validation": mean([run["validation"][task] for run in runs]),
                "lr": results["rates"][member],
                "parameters": runs[0]["parameters"],
                "seconds": mean([run["seconds"] for run in runs]),
                "cpu": mean([run["cpu"] for run in runs]),
                "subsets": {
                    name: mean([run["subsets"][name][task] for run in runs])
                    for name in runs[0]["subsets"]
                },
                "noise": {
                    name: {
                        level: mean([run["noise"][name][level][task] for run in runs])
                        for level in levels
                    }
                    for name, levels in runs[0]["noise"].items()
                },
            }
        )
    return sorted(rows, key=lambda row: -row["accuracy"])


def removal(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """By member and modalities left: accuracy where the others are removed at test time, and that
    of the same fusion trained without them."""
    task, found = results["task"], dict[str, dict[str, dict[str, float]]]()
    for member, kept in results["trained without"].items():
        for name, runs in kept.items():
            found.setdefault(member, {})[name] = {
                "removed at test": mean(
                    [run["subsets"][name][task] for run in results["members"][member]]
                ),
                "trained without": mean([run["test"][task] for run in runs]),
            }
    return found


def show(results: Results) -> None:
    """The tables."""
    rows, task = summarise(results), results["task"]
    console = Console(width=None if sys.stdout.isatty() else 160, emoji=False)
    others = list(rows[0]["others"])
    headings = ("mean ± 95 %", "p", *map(escape, others), "ECE", "val", "rate", "parameters", "s")
    table = Table(title=f"{escape(task)}, test accuracy (%)", title_justify="left")
    table.add_column("fusion", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row["fusion"]),
            f"{100 * row['accuracy']:.1f} ± {100 * row['interval']:.1f}",
            "" if row["p"] is None else f"{row['p']:.3f}",
            *(f"{100 * row['others'][name]:.1f}" for name in others),
            f"{100 * row['ece']:.1f}",
            f"{100 * row['validation']:.1f}",
            f"{row['lr']:g}",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['seconds']:.1f}",
        )
    console.print(table)
    names = list(rows[0]["subsets"])
    table = Table(title=f"{escape(task)}, with only these modalities (%)", title_justify="left")
    table.add_column("fusion", no_wrap=True)
    for name in names:
        table.add_column(escape(name).replace(" + ", "\n"), justify="right")
    for row in rows:
        cells = (f"{100 * row['subsets'][name]:.1f}" for name in names)
        table.add_row(escape(row["fusion"]), *cells)
    console.print(table)
    for member, kept in removal(results).items():
        table = Table(title=f"{escape(member)}: modalities removed", title_justify="left")
        for heading in ("left", "removed at test", "trained without"):
            table.add_column(heading, justify="right" if heading != "left" else "left")
        for name, pair in kept.items():
            table.add_row(escape(name), *(f"{100 * value:.1f}" for value in pair.values()))
        console.print(table)


def markdown(rows: Sequence[Mapping[str, Any]], removed: Mapping[str, Any]) -> str:
    """The tables of `summarise` and `removal` for a page."""
    others, names = list(rows[0]["others"]), list(rows[0]["subsets"])
    heads = ["fusion", "accuracy", "p", *others, "ECE", "rate", "parameters", "CPU s"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in rows:
        lines.append(
            [
                f"`{row['fusion']}`",
                f"{100 * row['accuracy']:.1f} ± {100 * row['interval']:.1f}",
                "" if row["p"] is None else f"{row['p']:.3f}",
                *(f"{100 * row['others'][name]:.1f}" for name in others),
                f"{100 * row['ece']:.1f}",
                f"{row['lr']:g}",
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['cpu']:.0f}",
            ]
        )
    lines += [[], ["only", *names], ["---"] + ["---:"] * len(names)]
    for row in rows:
        cells = (f"{100 * row['subsets'][name]:.1f}" for name in names)
        lines.append([f"`{row['fusion']}`", *cells])
    lines += [[], ["fusion", "left", "removed at test", "trained without"]]
    lines.append(["---", "---", "---:", "---:"])
    for member, kept in removed.items():
        for name, pair in kept.items():
            lines.append([f"`{member}`", name, *(f"{100 * value:.1f}" for value in pair.values())])
    return "\n".join(f"| {' | '.join(cells)} |" if cells else "" for cells in lines) + "\n"


def draw(results: Results, folder: Path) -> list[Path]:
    """Pictures: accuracies with intervals, a map of the subsets, curves under noise."""
    rows, task = summarise(results), results["task"]
    labels = [row["fusion"] for row in rows]
    height = 0.34 * len(rows) + 1.4
    paths = [folder / f"{name}.png" for name in ("accuracy", "subsets", "noise")]

    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.5, height))
        values = [100 * row["accuracy"] for row in rows]
        errors = [100 * row["interval"] for row in rows]
        colours = ["#35618f" if label != BASELINE else "#b0703c" for label in labels]
        ends = [[v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1)]
        axes.hlines(labels, *ends, colors=colours)
        axes.scatter(values, labels, color=colours)
        for value, label in zip(values, labels, strict=True):
            place = {"xytext": (0, 5), "textcoords": "offset points"}
            axes.annotate(f"{value:.1f}", (value, label), fontsize=7, ha="center", **place)
        axes.invert_yaxis()
        axes.grid(axis="y", alpha=0.25)
        axes.set_xlabel("accuracy (%), mean and 95 % interval over seeds")
        axes.set_title(f"{task}: test accuracy by fusion", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        finish(figure, paths[0])

        names = list(rows[0]["subsets"])
        figure, axes = pyplot.subplots(figsize=(1.1 * len(names) + 3, height + 0.8))
        grid = [[100 * row["subsets"][name] for name in names] for row in rows]
        image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=100)
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                shade = "white" if value < 60 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=shade, fontsize=8)
        axes.set_xticks(
            range(len(names)), [name.replace(" + ", "\n") for name in names], fontsize=8
        )
        axes.set_yticks(range(len(labels)), labels)
        axes.set_title(f"{task}: accuracy (%) with only these modalities", loc="left")
        figure.colorbar(image, ax=axes, fraction=0.03)
        finish(figure, paths[1])

        modalities = list(rows[0]["noise"])
        figure, panels = pyplot.subplots(
            1, len(modalities), figsize=(3.6 * len(modalities) + 2, 4), sharey=True, squeeze=False
        )
        palette = pyplot.get_cmap("turbo")
        for axes, name in zip(panels[0], modalities, strict=True):
            for k, row in enumerate(rows):
                levels = row["noise"][name]
                axes.plot(
                    [float(level) for level in levels],
                    [100 * value for value in levels.values()],
                    color=palette(k / max(1, len(rows) - 1)),
                    label=row["fusion"],
                    linewidth=1.2,
                )
            axes.set_title(f"noise on {name}", loc="left")
            axes.set_xlabel("deviations of the features")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        panels[0][0].set_ylabel(f"{task}, accuracy (%)")
        panels[0][-1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
        finish(figure, paths[2])
    return paths


def finish(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
