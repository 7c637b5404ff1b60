"""What a run tells while it trains: the trackers of accelerate and `training.csv`."""

from __future__ import annotations

import csv
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mmtransfer.tasks.base import Task

COLUMNS = ["step", "phase", "epoch", "loss", "rate", "rows_per_second", "memory_mb"]


class Log:
    """One line per step in `training.csv`, and per epoch one with the validation metrics.

    memory_mb: peak of this process so far, on its GPU where it has one
    After a resume, lines of steps that are done anew are taken out.
    Raises `OSError` that names the file when it cannot be written.
    """

    def __init__(
        self, accelerator: Accelerator, output: Path | None, tasks: Mapping[str, Task]
    ) -> None:
        self.accelerator = accelerator
        self.file = output / "training.csv" if output and accelerator.is_main_process else None
        scores: list[str] = []
        if self.file is not None:
            scores = [f"{n}/{m}" for n, t in tasks.items() for m in ("rows", *t.metrics(), "loss")]
        self.columns = [*COLUMNS, *(f"validation/{score}" for score in scores)]
        self.since = time.perf_counter()

    def begin(self, step: int, epochs: int) -> None:
        """Start trackers and file, or keep of it what was written up to a step and epoch."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers("logs")
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept: list[dict[str, str]] = []
        if self.file.is_file() and step:
            with self.file.open(newline="") as file:
                whole = (line for line in file if line.endswith("\n"))  # the last may be torn
                for line in csv.DictReader(whole):
                    if None in line.values():  # too few fields
                        continue
                    ended = bool(line["loss"]) or int(line["epoch"]) <= epochs
                    if int(line["step"]) <= step and ended:
                        kept.append(line)
        self._write("w", [dict(zip(self.columns, self.columns, strict=True)), *kept])

    def restart_clock(self) -> None:
        self.since = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the last steps were told."""
        return time.perf_counter() - self.since

    def steps(
        self,
        first: int,
        losses: Sequence[float],
        rates: Sequence[float],
        where: Mapping[str, int],
        rows: int,
    ) -> dict[str, float]:
        """Losses and rates of the steps from `first` on; -> speed since the last call, memory."""
        seconds = max(self.elapsed(), 1e-9)
        found = {"rows_per_second": rows / seconds, "memory_mb": peak_memory()}
        self.restart_clock()
        lines = [
            {"step": first + k, **where, "loss": loss, "rate": rate}
            for k, (loss, rate) in enumerate(zip(losses, rates, strict=True))
        ]
        lines[-1] |= found
        self._write("a", lines)
        values = {"loss": sum(losses) / len(losses), "rate": rates[-1], **found}
        self.accelerator.log(
            {f"train/{k}": v for k, v in values.items()}, step=first + len(losses) - 1
        )
        return found

    def epoch(
        self, step: int, where: Mapping[str, int], metrics: Mapping[str, Mapping[str, float]]
    ) -> None:
        """The validation metrics of an epoch."""
        flat = {
            f"validation/{t}/{n}": v for t, values in metrics.items() for n, v in values.items()
        }
        self._write("a", [{"step": step, **where, **flat}])
        self.accelerator.log(flat, step=step)

    def _write(self, mode: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.file is None:
            return
        try:
            with self.file.open(mode, newline="") as file:
                csv.DictWriter(file, self.columns, extrasaction="ignore").writerows(lines)
        except OSError as error:
            raise OSError(
                f"{self.file} cannot be written ({error}): make room and go on with --resume"
            ) from error


def peak_memory() -> float:
    """Peak memory of this process in MB: of its GPU where it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def summary(record: Mapping[str, Any]) -> str:
    """One line about an epoch."""
    parts = [f"loss {record['train_loss']:.4f}"]
    for task, metrics in record.get("validation", {}).items():
        shown = {k: v for k, v in metrics.items() if k not in ("rows", "loss")}
        parts += [f"{task} {name} {value:.4f}" for name, value in shown.items()]
    return "  ".join(parts)
