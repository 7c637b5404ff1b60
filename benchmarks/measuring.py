"""What the benchmarks have in common: two sides in turns, seconds of clock and CPU, a JSON file."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from accelerate import PartialState

from mmtransfer.training.surroundings import hardware, versions

RESULTS = Path(__file__).parent / "results"


class Seconds(NamedTuple):
    """What some work took by the clock, and of this process's CPU (of all its threads)."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    """Seconds until all processes are done, and what came out."""
    gc.collect()
    state = PartialState()

    def settle() -> Seconds:
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        state.wait_for_everyone()
        return Seconds(time.perf_counter(), time.process_time())

    started = settle()
    result = work()
    ended = settle()
    return Seconds(ended.wall - started.wall, ended.cpu - started.cpu), result


def in_turns(sides: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[Seconds]]:
    """Seconds of each side, one turn after the other; the first turn of each does not count.

    What else the machine does then falls on all sides alike.
    """
    found: dict[str, list[Seconds]] = {name: [] for name in sides}
    for _ in range(turns + 1):
        for name, work in sides.items():
            found[name].append(timed(work)[0])
    return {name: seconds[1:] for name, seconds in found.items()}


def ratio(above: list[Seconds], below: list[Seconds], clock: str = "wall") -> float:
    """Median over the turns of one side's seconds by the other's."""
    pairs = zip(above, below, strict=True)
    return median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)


def typical(seconds: list[Seconds]) -> dict[str, float]:
    return {"wall": median(s.wall for s in seconds), "cpu": median(s.cpu for s in seconds)}


def shared_directory() -> Path:
    """Where real data and weights are, if they are: $MMTRANSFER_SHARED or ../shared."""
    return Path(os.environ.get("MMTRANSFER_SHARED", Path(__file__).parents[2] / "shared"))


def write_results(output: Path, results: Mapping[str, Any]) -> None:
    """JSON with versions and hardware in front."""
    output.parent.mkdir(parents=True, exist_ok=True)
    surroundings = {"versions": versions(), "hardware": hardware()}
    output.write_text(json.dumps({**surroundings, **results}, indent=2) + "\n")


def spawn(script: str, processes: int) -> None:
    """Start the present command on several processes, with one feature store for all."""
    cpu = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", str(processes), script, *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | cpu | {"MMTRANSFER_CACHE": cache}
        if code := subprocess.run(launcher, env=environment).returncode:
            raise SystemExit(code)


def decide(failures: list[str]) -> None:
    """Exit code 1 with a line for each figure that misses its limit."""
    for line in failures:
        print(line, file=sys.stderr)
    if failures:
        raise SystemExit(1)
