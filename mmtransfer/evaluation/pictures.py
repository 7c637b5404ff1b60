"""Pictures of an evaluation, from the numbers that `evaluation.json` holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmtransfer.evaluation.canvas import BLUE, BROWN, GREY, canvas, colours
from mmtransfer.evaluation.curve_pictures import draw_forgetting, draw_learning
from mmtransfer.evaluation.curves import SHARES

LARGEST_MATRIX = 60  # classes; more cannot be told apart in a picture

Results = Mapping[str, Any]


def draw(results: Results, folder: Path) -> list[str]:
    """Write PNG files of all that there is; -> their names."""
    written: list[str] = []
    stems = file_stems(list(results["tasks"]))
    for task, found in results["tasks"].items():
        if "classes" not in found:
            continue
        for kind, picture in BY_TASK.items():
            path = folder / f"{stems[task]}-{kind}.png"
            if picture(task, found, path):
                written.append(path.name)
    robustness = results["robustness"]
    for start, tasks, percent in by_scale(results, stems):
        draw_subsets(robustness["subsets"], tasks, percent, folder / f"{start}subsets.png")
        draw_noise(robustness, tasks, percent, folder / f"{start}noise.png")
        written += [f"{start}subsets.png", f"{start}noise.png"]
    for method, found in results.get("maps", {}).items():
        draw_map(method, found, folder / f"{method}.png")
        written.append(f"{method}.png")
    if len(results.get("learning", {}).get("train_loss", [])) > 1:
        draw_learning(results["learning"], folder / "learning.png")
        written.append("learning.png")
    if any(results.get("forgetting", {}).values()):
        draw_forgetting(results["forgetting"], folder / "forgetting.png")
        written.append("forgetting.png")
    return written


def by_scale(results: Results, stems: Mapping[str, str]) -> Iterator[tuple[str, list[str], bool]]:
    """Tasks whose scores fit into one picture, how its name begins, and whether in percent."""
    scored = list(next(iter(results["robustness"]["subsets"].values())))  # not without any label
    shares = [name for name in scored if results["tasks"][name]["score"] in SHARES]
    if shares:
        yield "", shares, True
    for name in scored:
        if name not in shares:
            yield f"{stems[name]}-", [name], False


def file_stems(names: list[str]) -> dict[str, str]:
    """Names of files by name, of letters and digits, numbered where they would be the same."""
    found: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^\w-]", "_", name)
        taken = {other.lower() for other in found.values()}
        others = (f"{stem}-{k}" for k in range(2, len(names) + 2))
        found[name] = next(s for s in (stem, *others) if s.lower() not in taken)
    return found


def draw_reliability(task: str, found: Results, path: Path) -> bool:
    with canvas(path, f"{task}: accuracy by confidence", (4.8, 4.6)) as axes:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for colour, (stage, numbers) in zip(
            (BROWN, BLUE), found["calibration"].items(), strict=False
        ):
            bins = [b for b in numbers["bins"] if b["rows"]]
            x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
            label = f"{stage} scaling, ECE {numbers['ece']:.3f}"
            axes.plot(x, y, color=colour, linewidth=1, label=label)
            most = max(b["rows"] for b in bins)
            sizes = [6 + 60 * b["rows"] / most for b in bins]  # a point of few rows says little
            axes.scatter(x, y, s=sizes, color=colour)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False)
    return True


def draw_selective(task: str, found: Results, path: Path) -> bool:
    with canvas(path, f"{task}: errors among the surest rows") as axes:
        coverage, risk = zip(*found["selective"]["curve"], strict=True)
        axes.plot(coverage, [100 * r for r in risk], color=BLUE)
        axes.set_xlabel("coverage")
        axes.set_ylabel("errors (%)")
        axes.set_xlim(0, 1)
    return True


def draw_contributions(task: str, found: Results, path: Path) -> bool:
    numbers = found["contributions"]["accuracy"]
    shares = numbers["of_modalities"]
    with canvas(path, f"{task}: contributions to accuracy", (5.5, 0.5 * len(shares) + 1.6)) as axes:
        values = [100 * share["value"] for share in shares.values()]
        below = [100 * (s["value"] - s["low"]) for s in shares.values()]
        above = [100 * (s["high"] - s["value"]) for s in shares.values()]
        errors = [[max(0.0, e) for e in side] for side in (below, above)]
        axes.barh(list(shares), values, xerr=errors, color=BLUE, capsize=2, height=0.6)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel(
            f"percent points, of {100 * numbers['none']:.1f} % without any modality "
            f"to {100 * numbers['all']:.1f} %"
        )
    return True


def draw_confusion(task: str, found: Results, path: Path) -> bool:
    names = [str(entry["class"]) for entry in found["classes"]]
    if len(names) > LARGEST_MATRIX:
        return False
    side = max(4.0, 0.25 * len(names) + 2)
    with canvas(path, f"{task}: rows by true and predicted class", (side, side)) as axes:
        axes.grid(visible=False)
        matrix = found["confusion"]["matrix"]
        rates = [[100 * value / max(1, sum(line)) for value in line] for line in matrix]
        axes.imshow(rates, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if len(names) <= 12:
            for y, line in enumerate(matrix):
                for x, value in enumerate(line):
                    shade = "white" if rates[y][x] > 55 else "black"
                    axes.text(x, y, value, ha="center", va="center", color=shade, fontsize=7)
    return True


BY_TASK = {
    "reliability": draw_reliability,
    "selective": draw_selective,
    "contributions": draw_contributions,
    "confusion": draw_confusion,
}


def draw_subsets(subsets: Results, tasks: list[str], percent: bool, path: Path) -> None:
    """Bars of tasks whose scores are shares, in percent, or of one task on a scale of its own."""
    height = 0.9 + (0.25 + 0.2 * len(tasks)) * len(subsets)
    title, factor = scale_of(tasks, percent)
    with canvas(path, f"{title} with only these modalities", (6.5, height)) as axes:
        span = 0.8 / len(tasks)
        for k, (task, colour) in enumerate(zip(tasks, colours(len(tasks)), strict=True)):
            places = [g - 0.4 + span * (k + 0.5) for g in range(len(subsets))]
            values = [factor * scores[task] for scores in subsets.values()]
            bars = axes.barh(places, values, span * 0.92, color=colour, label=task)
            axes.bar_label(bars, fmt="%.1f" if percent else "%.3g", fontsize=7, padding=2)
        axes.set_yticks(range(len(subsets)), list(subsets))
        axes.invert_yaxis()
        if percent:
            axes.set_xlim(0, 108)
        else:
            axes.margins(x=0.12)
        axes.legend(frameon=False, loc="lower right")


def draw_noise(robustness: Results, tasks: list[str], percent: bool, path: Path) -> None:
    """Curves of the same scores as the bars."""
    whole = next(iter(robustness["subsets"].values()))
    title, factor = scale_of(tasks, percent)
    with canvas(path, f"{title} with noise on one modality") as axes:
        for task, style in zip(tasks, ("-", "--", ":", "-.") * len(tasks), strict=False):
            shades = colours(len(robustness["noise"]))
            for (name, levels), colour in zip(robustness["noise"].items(), shades, strict=True):
                axes.plot(
                    [0.0, *(float(level) for level in levels)],
                    [factor * scores[task] for scores in (whole, *levels.values())],
                    style,
                    color=colour,
                    marker="o",
                    markersize=3,
                    label=f"{task}, {name}",
                )
        axes.set_xlabel("deviations of the features")
        axes.legend(frameon=False, fontsize=7)


def scale_of(tasks: list[str], percent: bool) -> tuple[str, int]:
    """What a picture of scores is called, and by what the scores are multiplied."""
    return ("score (%)", 100) if percent else (f"{tasks[0]}: score", 1)


def draw_map(method: str, found: Results, path: Path) -> None:
    with canvas(path, f"fused vectors, {'PCA' if method == 'pca' else 't-SNE'}") as axes:
        classes = found["classes"] or [-1] * len(found["points"])
        known = [(x, y, c) for (x, y), c in zip(found["points"], classes, strict=True) if c >= 0]
        others = [p for p, c in zip(found["points"], classes, strict=True) if c < 0]
        if others:
            axes.scatter(*zip(*others, strict=True), s=6, color=GREY)
        if known:
            x, y, shades = zip(*known, strict=True)
            axes.scatter(x, y, s=6, c=shades, cmap="turbo")
        axes.set_xticks([])
        axes.set_yticks([])
