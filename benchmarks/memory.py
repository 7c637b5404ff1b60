"""Does the memory of a training run grow with its data?

    python benchmarks/memory.py

Writes a parquet set of photos and texts, and one `--factor` times as large, then trains tiny
models for the same number of steps on both, each run in a process of its own:

    full    trainable encoders, rows read from the parquet files in shuffled row groups
    probe   frozen encoders: all rows are encoded into the feature store, then read from there
    stream  trainable encoders, rows streamed by `datasets`
    list    as full, but with all rows in a list: a control, which must grow and is not judged

Peak memory is the largest RssAnon (memory that is no file, sampled from /proc/self/status every
10 ms) and VmHWM (the kernel's peak of all resident memory, mapped files such as libraries and the
feature store included).  Exits with status 1 if the peak of RssAnon grows by more than `--limit`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

JUDGED = ("full", "probe", "stream")
RUNS = (*JUDGED, "list")
ENCODERS = {"image": "tiny-vit", "text": "tiny-bert"}
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "pyarrow", "numpy")
PHOTOS, PIXELS, GROUP = 64, 224, 64  # different photos, their width and height, rows per group
WORDS = ("red", "green", "blue", "round", "square", "large", "small", "bottle", "can", "box")


def write_rows(file: Path, rows: int, seed: int = 0) -> int:
    """A parquet file of `rows` photos with texts and labels; -> its size in bytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(seed)
    photos = []
    for _ in range(PHOTOS):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    schema = pa.schema({"image": pa.binary(), "text": pa.string(), "product": pa.string()})
    # Neither dictionaries nor compression, which would find the repeated photos.
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP):
            count = min(GROUP, rows - start)
            # The number of the row after the end of the JPEG: no two rows are the same.
            chosen = rng.integers(0, PHOTOS, count)
            images = [photos[p] + (start + i).to_bytes(8) for i, p in enumerate(chosen)]
            texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]
            labels = [f"product {p % 8}" for p in chosen]
            table = pa.table({"image": images, "text": texts, "product": labels}, schema=schema)
            writer.write_table(table, row_group_size=GROUP)
    return file.stat().st_size


def status(name: str) -> int:
    """A value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not report {name}: the benchmark needs Linux")


class Sampler(threading.Thread):
    """The largest RssAnon of this process while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, status("RssAnon"))


def train(run: str, directory: Path, steps: int) -> dict[str, Any]:
    """One run for a number of steps; -> its peaks of memory in bytes, and seconds."""
    from mmtransfer import Phase, Strategy, TrainingOptions
    from mmtransfer.data.rows import load_rows
    from mmtransfer.methods.base import Method
    from mmtransfer.training.run import build_model
    from mmtransfer.training.trainer import Trainer

    class EnoughError(Exception):
        pass

    class Stop(Method):
        def on_weights(self, model: Any, step: int) -> None:
            if step == steps:
                raise EnoughError

    sampler, started = Sampler(), time.perf_counter()
    sampler.start()
    rows: Any = load_rows(directory, streaming=run == "stream")["train"]
    rows = list(rows) if run == "list" else rows
    task = {"name": "classification", "classes": [f"product {i}" for i in range(8)]}
    model = build_model(ENCODERS, {"product": task}, rows, width=32)
    rate = 0.0 if run == "probe" else 1e-4
    strategy = Strategy([Phase(1000, lr=1e-3, encoder_lr=rate)], [Stop()])
    options = TrainingOptions(
        cache=str(directory / "cache"), shuffle_buffer=256, progress=False, track=[]
    )
    with contextlib.suppress(EnoughError):
        Trainer(model, rows, None, strategy, options).fit()
    sampler.done.set()
    sampler.join()
    seconds = time.perf_counter() - started
    return {"rss_anon": sampler.peak, "vm_hwm": status("VmHWM"), "seconds": seconds}


def measure(run: str, directory: Path, steps: int) -> dict[str, Any]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--child", run, "--output", str(directory)]
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the run {run!r} in {directory} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(directory: Path, rows: int, factor: int, steps: int) -> dict[str, Any]:
    """All runs on a small and a large set."""
    sizes = {"small": rows, "large": rows * factor}
    data: dict[str, Any] = {}
    for name, count in sizes.items():
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        data[name] = {"rows": count, "bytes": write_rows(folder / "train.parquet", count)}
    runs: dict[str, Any] = {}
    for run in RUNS:
        runs[run] = {name: measure(run, directory / name, steps) for name in sizes}
        small, large = runs[run]["small"], runs[run]["large"]
        runs[run]["growth"] = large["rss_anon"] / small["rss_anon"] - 1
    return {"data": data, "steps": steps, "runs": runs}


def hardware() -> dict[str, Any]:
    names = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((n.split(":")[1].strip() for n in names if n.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": processor, "cores": os.cpu_count(), "memory": memory}


def show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Peak memory (MiB) of the same steps on small and large data")
    for heading in ("run", "rows", "data", "RssAnon", "VmHWM", "seconds", "growth of RssAnon"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for run, found in results["runs"].items():
        for name, data in results["data"].items():
            peak = found[name]
            growth = f"{100 * found['growth']:+.1f} %" if name == "large" else ""
            sizes = (data["bytes"], peak["rss_anon"], peak["vm_hwm"])
            cells = [f"{size / 2**20:.0f}" for size in sizes]
            table.add_row(run, str(data["rows"]), *cells, f"{peak['seconds']:.0f}", growth)
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1500, help="of the small set")
    parser.add_argument("--factor", type=int, default=8, help="how much larger the large set is")
    parser.add_argument("--steps", type=int, default=60, help="of each run, with 32 rows each")
    parser.add_argument("--limit", type=float, default=0.1, help="largest growth that passes")
    parser.add_argument("--output", type=Path, help="keep the data here (default: temporary)")
    results_file = Path(__file__).parent / "results" / "memory.json"
    parser.add_argument("--results", type=Path, default=results_file)
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(train(chosen.child, chosen.output, chosen.steps)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        directory = chosen.output or Path(temporary)
        results = compare(directory, chosen.rows, chosen.factor, chosen.steps)
    results["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in LIBRARIES
    }
    results["hardware"] = hardware()
    results["limit"] = chosen.limit
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    chosen.results.write_text(json.dumps(results, indent=2) + "\n")
    show(results)
    worst = max(results["runs"][run]["growth"] for run in JUDGED)
    if worst > chosen.limit:
        print(f"memory grew by {100 * worst:.1f} %, expected at most {100 * chosen.limit:.0f} %")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
