"""WiSE-FT and LP-FT against full fine-tuning, on photos like those of training and corrupted ones.

The models are those of `few_labels`, judged on the corrupted test photos as well; none of them has
seen such a photo.  WiSE-FT is LP-FT taken half way back to the linear probe; what lies between is
told too, by alpha, against the end of that fine-tuning, as the paper does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtransfer.benchmark.report import finish
from mmtransfer.drawing import drawing
from transferring import few_labels
from transferring.cells import Cell, Figures
from transferring.report import Summary, better, compared

BASELINES = few_labels.BASELINES
MEMBERS = ("full", "linear_probe", "lp_ft", "wise_ft")
BY_ALPHA, END = ", by alpha", "1.0"  # of the names of tables; plain fine-tuning


def cells(seeds: range, tested: int, shorter: float = 1.0, tune: bool = False) -> list[Cell]:
    """Those of `few_labels` that have seen photos alone."""
    found = [] if tune else few_labels.cells(seeds, tested, shorter)
    return [c for c in found if c.member in MEMBERS and c.spec["inputs"] == few_labels.PHOTO]


def further(results: Sequence[tuple[Cell, Figures]]) -> Summary:
    """WiSE-FT by alpha, against the end of its fine-tuning."""
    found: dict[str, dict[str, dict[int, Figures]]] = {}
    for cell, figures in results:
        for alpha, accuracies in figures.get("curve", {}).items():
            members = found.setdefault(f"{cell.setting}{BY_ALPHA}", {})
            members.setdefault(alpha, {})[cell.seed] = accuracies
    return {
        setting: {
            alpha: {kind: compared(seeds, by_alpha[END], kind) for kind in BASELINES}
            for alpha, seeds in by_alpha.items()
        }
        for setting, by_alpha in found.items()
    }


def draw(summary: Summary, path: Path) -> None:
    """Accuracy off against in distribution, along alpha, as the paper shows it."""
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=(6, 4.2))
        for setting, by_alpha in summary.items():
            if not setting.endswith(BY_ALPHA):
                continue
            x = [100 * found["accuracy"]["mean"] for found in by_alpha.values()]
            y = [100 * found["shifted"]["mean"] for found in by_alpha.values()]
            axes.plot(x, y, marker="o", label=setting.removesuffix(BY_ALPHA))
            for alpha, across, up in zip(by_alpha, x, y, strict=True):
                place = {"xytext": (4, 4), "textcoords": "offset points"}
                axes.annotate(alpha, (across, up), fontsize=7, **place)
        axes.set_xlabel("accuracy on test photos (%)")
        axes.set_ylabel("accuracy on corrupted test photos (%)")
        axes.set_title("WiSE-FT by alpha", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        finish(figure, path)


def misses(summary: Summary, results: Sequence[tuple[Cell, Figures]]) -> list[str]:
    """A line for each way that is in no table better off distribution and no worse in it."""
    full = {setting: told for setting, told in summary.items() if not setting.endswith(BY_ALPHA)}
    ends = {setting: told for setting, told in summary.items() if setting.endswith(BY_ALPHA)}
    lines = []
    if not any(holds(members, "lp_ft") for members in full.values()):
        lines.append("lp_ft is not better on corrupted photos than full tuning, or worse on others")
    if not any(holds(members, "0.5") for members in ends.values()):
        lines.append("wise_ft is not better on corrupted photos than its end, or worse on others")
    return lines


def holds(members: Mapping[str, Mapping[str, Mapping[str, float]]], name: str) -> bool:
    inside = members[name]["accuracy"]
    return name in better(members, "shifted") and inside["gain"] >= -inside["gain_interval"]
