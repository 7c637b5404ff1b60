"""How long it takes until the command answers: CPU seconds of new Python processes.

    python benchmarks/startup.py

The commands take turns; a figure is the median over the turns, each in a process of its own, of the
CPU seconds that the kernel counted for it.  `python -c pass` stands beside them for comparison, and
counts in all others.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

PATHS = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
#: what is run, and the most CPU seconds that it may take
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "import mmtransfer": (["-c", "import mmtransfer"], 0.2),
    "mmtransfer --help": (["-m", "mmtransfer.cli", "--help"], 0.5),
}


def seconds_of(arguments: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of CPU of one new process.  Raises `RuntimeError` if it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, PATHS))},
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(turns: int) -> dict[str, dict[str, float | None]]:
    """Medians of the turns; a first turn, which may have to read from the disk, does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(turns + 1):
        for name, (arguments, _) in COMMANDS.items():
            found[name].append(seconds_of(arguments))
    return {
        name: {
            "wall": median(wall for wall, _ in found[name][1:]),
            "cpu": median(cpu for _, cpu in found[name][1:]),
            "limit": COMMANDS[name][1],
        }
        for name in COMMANDS
    }


def main(turns: int = 9, output: Path | None = None) -> None:
    """Measure how long starting takes.

    Args:
        turns: that count
        output: JSON file, by default benchmarks/results/startup.json
    """
    cases = measure(turns)
    from measuring import RESULTS, decide, write_results  # loads torch, which nothing above needs

    write_results(
        output or RESULTS / "startup.json", {"settings": {"turns": turns}, "cases": cases}
    )
    table = Table(title="Seconds to start", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("clock", "CPU", "limit"):
        table.add_column(heading, justify="right")
    for name, case in cases.items():
        limit = "" if case["limit"] is None else f"{case['limit']:.2f}"
        table.add_row(name, f"{case['wall']:.3f}", f"{case['cpu']:.3f}", limit)
    Console().print(table)
    decide(
        [
            f"{name} takes {case['cpu']:.2f} s of CPU, over the limit {case['limit']}"
            for name, case in cases.items()
            if case["limit"] is not None and case["cpu"] > case["limit"]
        ]
    )


if __name__ == "__main__":
    from mmtransfer.cli import command

    command(main, "startup.py")
