"""WiSE-FT and LP-FT against full fine-tuning, on photos like those of training and corrupted ones.

The models are those of `few_labels`, judged on the corrupted test photos as well; none of them has
seen such a photo.  WiSE-FT is LP-FT taken half way back to the linear probe; what lies between is
told too, by alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from transferring import few_labels
from transferring.cells import Cell, Figures
from transferring.report import Summary, better

Curves = dict[str, dict[str, dict[str, float]]]

BASELINES = few_labels.BASELINES
MEMBERS = ("full", "linear_probe", "lp_ft", "wise_ft")


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """Those of `few_labels` that have seen photos alone."""
    found = [] if tune else few_labels.cells(seeds, tested, shorter)
    return [c for c in found if c.member in MEMBERS and c.spec["inputs"] == few_labels.PHOTO]


def more(results: Sequence[tuple[Cell, Figures]]) -> Curves:
    """By table and alpha, mean accuracies on both kinds of photos."""
    found: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for cell, figures in results:
        for alpha, accuracies in figures.get("curve", {}).items():
            found.setdefault(cell.setting, {}).setdefault(alpha, []).append(accuracies)
    return {
        setting: {
            alpha: {kind: mean(seed[kind] for seed in seeds) for kind in seeds[0]}
            for alpha, seeds in by_alpha.items()
        }
        for setting, by_alpha in found.items()
    }


def draw(curves: Curves, path: Path) -> None:
    """Accuracy off against in distribution, along alpha, as the paper shows it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.2))
    for setting, by_alpha in curves.items():
        x = [100 * found["accuracy"] for found in by_alpha.values()]
        y = [100 * found["shifted"] for found in by_alpha.values()]
        axes.plot(x, y, marker="o", label=setting)
        for alpha, across, up in zip(by_alpha, x, y, strict=True):
            place = {"xytext": (4, 4), "textcoords": "offset points"}
            axes.annotate(alpha, (across, up), fontsize=7, **place)
    axes.set_xlabel("accuracy on test photos (%)")
    axes.set_ylabel("accuracy on corrupted test photos (%)")
    axes.set_title("WiSE-FT by alpha", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """A line for each that is not better off distribution, or worse in it."""
    return [
        f"{setting}: {name} is not better on corrupted photos, or worse on others"
        for setting, members in summary.items()
        for name in ("lp_ft", "wise_ft")
        if name not in better(members, "shifted")
        or members[name]["accuracy"]["gain"] < -members[name]["accuracy"]["gain_interval"]
    ]
