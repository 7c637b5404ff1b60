"""Run by test_resume.py: train in forked processes that are killed at given points, and go on.

Everything is imported once and then forked, so that many kills cost little.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

import mmtransfer.training.checkpoint as checkpoint
from mmtransfer.data.products import product_rows
from mmtransfer.methods.base import Method
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.stop import Stopped
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
TRAIN = product_rows("target/train", rows=37)  # the last step of an epoch is short
for i, row in enumerate(TRAIN):
    row["audio"] = row["audio"] if i % 4 == 0 else None
VALIDATION = product_rows("target/validation", rows=19)


class Kill(Method):
    """Kills its process, or only signals it, right after a step."""

    def __init__(self, at: int, number: int = signal.SIGKILL) -> None:
        self.at, self.number = at, number

    def config(self) -> dict:
        return {"class": "none of the run's own"}

    def on_weights(self, model, step) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


def kill_in_write(number: int) -> None:
    """Die in the middle of the `number`-th file of checkpoints that this process writes."""
    plain, count = checkpoint.write_file, 0

    def write(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count == number:
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        plain(path, content)

    checkpoint.write_file = write


def train(output: Path, resume: bool, point: dict) -> None:
    """One process of a run; leaves weights and curves beside the output directory."""
    if "write" in point:
        kill_in_write(point["write"])
    at = Kill(point.get("step", -1), point.get("signal", signal.SIGKILL))
    strategy = build_strategy(
        "lp_ft", ["modality_dropout", at], probe_epochs=2, epochs=2, encoder_lr=1e-3, lr=5e-3
    )
    options = TrainingOptions(
        batch_size=10,
        evaluation_batch_size=7,
        augment=True,
        progress=False,
        track=[],
        checkpoint_steps=3,
        accumulation=point.get("accumulation", 1),
        workers=point.get("workers", 0),
    )
    model = build_model(TINY, TASKS, TRAIN, "gated", 16, seed=0, dropout=0.2)
    trainer = Trainer(model, TRAIN, VALIDATION, strategy, options, output)
    history = trainer.fit(resume)
    if trainer.accelerator.is_main_process:
        torch.save(
            {"weights": model.state_dict(), "losses": trainer.losses, "history": history},
            output.with_suffix(".result"),
        )
    trainer.close()
    from mmtransfer.training.setup import end_processes

    end_processes()


def fork(output: Path, resume: bool, point: dict, processes: int) -> list[int]:
    """Run all processes of a training; -> their exit statuses, -9 where killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            status = 1
            try:
                train(output, resume, point)
                status = 0
            except Stopped:
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = dict.fromkeys(children)
    while None in statuses.values():
        for child in [c for c, s in statuses.items() if s is None]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                statuses[child] = os.waitstatus_to_exitcode(status)
                if statuses[child]:  # a launcher ends the others too
                    for other in [c for c, s in statuses.items() if s is None]:
                        os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return list(statuses.values())


def curve(output: Path) -> list[dict]:
    """`training.csv` without the columns that tell of speed."""
    with (output / "training.csv").open(newline="") as file:
        return [
            {k: v for k, v in line.items() if k not in ("rows_per_second", "memory_mb")}
            for line in csv.DictReader(file)
        ]


def main(root: str, processes: str, points: str) -> None:
    directory, count, results = Path(root), int(processes), []
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    assert fork(directory / "whole", False, {}, count) == [0] * count
    whole = torch.load(directory / "whole.result", weights_only=True)
    for k, point in enumerate(json.loads(points)):
        output = directory / f"killed-{k}"
        died = fork(output, False, point, count)
        again = {key: value for key, value in point.items() if key in ("workers", "accumulation")}
        went_on = fork(output, True, again, count)
        found = {"point": point, "died": died, "went_on": went_on, "same": False}
        if went_on == [0] * count:
            result = torch.load(output.with_suffix(".result"), weights_only=True)
            found["same"] = (
                all(torch.equal(result["weights"][n], t) for n, t in whole["weights"].items())
                and result["losses"] == whole["losses"]
                and result["history"] == whole["history"]
            )
            found["same_log"] = curve(output) == curve(directory / "whole")
        results.append(found)
        print(json.dumps(found), flush=True)
    (directory / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
