"""Every fusion on the retail set, with three frozen pretrained encoders.

    OMP_NUM_THREADS=1 python benchmarks/fusion.py

The same as `mmtransfer benchmark fusion` with data and encoders filled in: photos, label texts and
speech of the retail set, MobileNetV2, MiniLM and KWT-1 with their real weights.  Results are in
benchmarks/results/fusion/; a run that was broken off goes on.  `--set av_digits` compares on digits
that are seen and heard, `--set embedded` on the embedded data with tiny encoders.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from measuring import RESULTS, shared_directory
from peers import minilm

from mmtransfer.benchmark.command import fusion_benchmark
from mmtransfer.cli import command
from mmtransfer.data.av_digits import write_av_digits
from mmtransfer.registry import nearest

SETS = ("retail", "av_digits", "embedded")
SMOOTH = {"name": "classification", "label_smoothing": 0.1}
PRODUCTS = {"product": SMOOTH, "category": SMOOTH}


def settings(chosen: str, folder: Path) -> dict[str, Any]:
    """Data, encoders and tasks of one of the sets."""
    if chosen not in SETS:
        raise ValueError(f"unknown set {chosen!r}.{nearest(chosen, SETS)}")
    if chosen == "embedded":
        return {}
    shared = shared_directory()
    image = f"hf:{shared / 'models' / 'mobilenet-v2-imagenet'}"
    audio = f"kwt:{shared / 'models' / 'kwt1-speech-commands'}"
    if chosen == "retail":
        encoders = {"image": image, "text": f"hf:{minilm()}", "audio": audio}
        return {"data": str(shared / "data" / "retail"), "encoders": encoders, "tasks": PRODUCTS}
    write_av_digits(folder, shared / "data" / "mnist", shared / "data" / "fsdd", overwrite=True)
    encoders = {"image": f"{image}?size=96", "audio": audio}  # pictures of 28 pixels
    tasks = {"digit": SMOOTH}
    return {"data": str(folder), "encoders": encoders, "tasks": tasks, "train_rows": 2000}


def main(
    set: str = "retail",
    fusions: list[str] | None = None,
    seeds: int = 5,
    jobs: int = 0,
    work: Path | None = None,
    output: Path = RESULTS / "fusion",
) -> None:
    """Compare all fusions on one of the sets.

    Args:
        set: "retail", "av_digits" or "embedded"
        fusions: names, by default all
        seeds: repetitions of each
        jobs: processes, by default one per core
        work: directory for features and what is done so far, by default runs/fusion-SET
        output: directory for results and pictures
    """
    work = work or Path("runs") / f"fusion-{set}"
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings(set, Path(folder))
        fusion_benchmark(**chosen, fusions=fusions, seeds=seeds, jobs=jobs, output=work)
    output.mkdir(parents=True, exist_ok=True)
    for file in ("results.json", "accuracy.png", "subsets.png", "noise.png"):
        shutil.copy(work / file, output / f"{set}_{file}")


if __name__ == "__main__":
    command(main, "fusion.py")
